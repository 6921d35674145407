//! Which backends new connections go to: backups, backends that warm up, drain by their own wish or follow others, a
//! client's own, and what becomes of them while all backends are down.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    ops::ControlFlow,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    client,
    wait::wait_until,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// A balancer with so many backends, whose configuration `change` has changed.
fn bed(backends: u8, change: impl Fn(String) -> String) -> Result<Bed> {
    let mut bed = Bed::without_controller(LB, "native", backends)?;
    bed.write_config("")?;
    fs::write(bed.config(), change(fs::read_to_string(bed.config())?))?;
    bed.start_controller(&[])?;
    Ok(bed)
}

/// With keys of the service.
fn with_keys(backends: u8, keys: &str) -> Result<Bed> {
    bed(backends, |text| text.replace("bind = ", &format!("{keys}\nbind = ")))
}

#[test]
fn backups_get_connections_only_while_no_other_is_up() -> Result<()> {
    let bed = bed(3, |text| text + "backup = true\n")?;
    bed.wait_for_up(3)?;
    for _ in 0..30 {
        ensure!(bed.request()? != "mgmt03", "a backup is used");
    }
    ensure!(bed.shown("mgmt03")?["share"] == 0.0);
    bed.kill_backend("mgmt01")?;
    bed.wait_for_state("mgmt01", "down")?;
    ensure!(bed.request()? == "mgmt02", "one is left");
    bed.lb_ok(&["drain", "ui/mgmt02"])?;
    let mut held = client::held(&bed, 3)?;
    ensure!(held.iter().all(|(name, _)| name == "mgmt03"), "the backup isn't used");
    bed.lb_ok(&["ready", "ui/mgmt02"])?;
    for _ in 0..10 {
        ensure!(bed.request()? == "mgmt02", "the backup is still used");
    }
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "it moved");
    }
    Ok(())
}

#[test]
fn while_all_are_down_clients_are_told_or_not_or_served_all_the_same() -> Result<()> {
    let bed = with_keys(2, "on_all_down = \"refuse\"")?;
    bed.wait_for_up(2)?;
    let ask = || {
        let start = Instant::now();
        let url = format!("http://{SERVICE}/client/");
        let arguments = ["-sS", "--max-time", "2", &url];
        (bed.client.run("curl", &arguments), start.elapsed())
    };
    // No check passes any longer, but the backends answer.
    let text = fs::read_to_string(bed.config())?
        .replace("[service.check]", "[service.check]\npath = \"/nowhere/\"\nrise = 1\nfall = 1");
    fs::write(bed.config(), &text)?;
    bed.lb_ok(&["reload"])?;
    for name in ["mgmt01", "mgmt02"] {
        bed.wait_for_state(name, "down")?;
    }
    let (result, took) = ask();
    let error = result.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(
        error.contains("exit status: 7") && took < Duration::from_secs(1),
        "{error} after {took:?}"
    );

    fs::write(bed.config(), text.replace("\"refuse\"", "\"drop\""))?;
    let said = bed.lb_ok(&["reload"])?;
    ensure!(said.contains("~ service ui on_all_down: refuse -> drop"), "{said}");
    let dropped = bed.reason("all_down")?;
    let (result, _) = ask();
    let error = result.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(error.contains("exit status: 28") && bed.reason("all_down")? > dropped, "{error}");

    fs::write(bed.config(), text.replace("\"refuse\"", "\"keep\""))?;
    bed.lb_ok(&["reload"])?;
    let mut names = Vec::new();
    for _ in 0..20 {
        names.push(bed.request()?);
    }
    ensure!(names.contains(&"mgmt01".to_owned()) && names.contains(&"mgmt02".to_owned()));
    ensure!(bed.shown("mgmt01")?["state"] == "down", "it isn't hidden");
    Ok(())
}

#[test]
fn by_source_all_connections_of_a_client_go_to_one_backend() -> Result<()> {
    let bed = with_keys(3, "balance = \"source\"")?;
    bed.wait_for_up(3)?;
    let mut clients = Vec::new();
    for host in 20..44 {
        let address = format!("10.91.0.{host}");
        bed.client.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        let url = format!("http://{SERVICE}/client/");
        let request =
            || bed.client.run("curl", &["-sf", "--max-time", "5", "--interface", &address, &url]);
        let first = request()?;
        for _ in 0..4 {
            ensure!(request()? == first, "{address} changes its backend");
        }
        clients.push(first);
    }
    for name in ["mgmt01", "mgmt02", "mgmt03"] {
        ensure!(clients.iter().any(|client| client.trim() == name), "{name} gets no client");
    }
    ensure!(bed.json(&["list", "services", "--json"])?[0]["balance"] == "source");
    Ok(())
}

#[test]
fn a_backend_that_comes_up_again_warms_up() -> Result<()> {
    let bed = with_keys(2, "slow_start = \"4s\"")?;
    bed.wait_for_up(2)?;
    let share = || -> Result<f64> { bed.shown("mgmt02")?["share"].as_f64().context("a share") };
    ensure!((share()? - 0.5).abs() < 0.01, "at the start nobody warms up: {}", share()?);
    bed.kill_backend("mgmt02")?;
    bed.wait_for_state("mgmt02", "down")?;
    bed.start_backend("mgmt02")?;
    bed.wait_for_state("mgmt02", "up")?;
    let mut shares = vec![share()?];
    wait_until("it has its whole share", || {
        let now = share()?;
        if shares.last() != Some(&now) {
            shares.push(now);
        }
        Ok((now - 0.5).abs() < 0.001)
    })?;
    println!("{shares:?}");
    ensure!(shares[0] < 0.2, "{shares:?}");
    ensure!(shares.len() > 5 && shares.is_sorted(), "{shares:?}");
    Ok(())
}

#[test]
fn a_backend_that_says_so_drains_and_comes_back() -> Result<()> {
    let bed = bed(2, |text| {
        let check = "[service.check]\npath = \"/upload/ready\"\ndrain_on = \"404\"";
        text.replace("[service.check]", check)
    })?;
    for name in ["mgmt01", "mgmt02"] {
        fs::write(bed.backend_file(name, "upload/ready"), "")?;
        bed.wait_for_state(name, "up")?;
    }
    let mut held = client::held(&bed, 8)?;
    fs::remove_file(bed.backend_file("mgmt02", "upload/ready"))?;
    bed.wait_for_state("mgmt02", "drain")?;
    bed.wait_for_event("drain  backend=mgmt02  detail=\"status 404\"")?;
    for _ in 0..10 {
        ensure!(bed.request()? == "mgmt01", "it takes new connections");
    }
    for (name, connection) in &mut held {
        ensure!(connection.request()? == *name, "a connection moved or ended");
    }
    fs::write(bed.backend_file("mgmt02", "upload/ready"), "")?;
    bed.wait_for_state("mgmt02", "up")?;
    Ok(())
}

#[test]
fn a_backend_follows_the_one_that_it_tracks() -> Result<()> {
    let bed = bed(2, |text| {
        text + "[[service]]\nname = \"agents\"\nbind = [\"10.91.0.100:8250\"]\n[service.check]\ntrack = \"ui\"\n\
                [[service.backend]]\nname = \"mgmt01\"\naddress = \"10.91.0.101:8250\"\n[[service.backend]]\nname = \
                \"mgmt02\"\naddress = \"10.91.0.102:8250\"\n"
    })?;
    let state = |name: &str| -> Result<(String, String)> {
        let backends = bed.json(&["list", "backends", "--json"])?;
        let mut all = backends.as_array().into_iter().flatten();
        let found = all.find(|shown| shown["service"] == "agents" && shown["name"] == name);
        let found = found.context("no such backend")?;
        Ok((
            found["state"].as_str().context("a state")?.to_owned(),
            found["check"]["detail"].as_str().context("a detail")?.to_owned(),
        ))
    };
    let becomes = |name: &str, wanted: &str| {
        wait_until(&format!("{name} is {wanted}"), || Ok(state(name)?.0 == wanted))
    };
    // Nobody listens on 8250: it is the check of 8080 that counts.
    becomes("mgmt01", "up")?;
    becomes("mgmt02", "up")?;
    ensure!(state("mgmt02")?.1 == "as ui/mgmt02", "{:?}", state("mgmt02")?);
    bed.kill_backend("mgmt02")?;
    becomes("mgmt02", "down")?;
    ensure!(state("mgmt01")?.0 == "up");
    bed.start_backend("mgmt02")?;
    becomes("mgmt02", "up")?;
    bed.lb_ok(&["maint", "ui/mgmt01"])?;
    becomes("mgmt01", "maint")?;
    bed.lb_ok(&["ready", "ui/mgmt01"])?;
    becomes("mgmt01", "up")
}

#[test]
fn what_clients_see_takes_a_backend_out_before_its_check_but_never_the_last_one() -> Result<()> {
    let bed = bed(3, |text| {
        let observed = "interval = \"1h\"\nfast_interval = \"200ms\"\ndown_interval = \"200ms\"\nobserve = \
                        \"connect\"\nobserve_failures = 2";
        text.replace("interval = \"200ms\"", observed)
    })?;
    bed.wait_for_up(3)?;
    let ask = |count: u32| {
        let address: SocketAddr = SERVICE.parse()?;
        client::at_pace(&bed.client, 8, Duration::from_millis(20), move |number| {
            // Whatever comes of it.
            let _: std::io::Result<TcpStream> =
                TcpStream::connect_timeout(&address, Duration::from_millis(300));
            if number < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    };
    bed.kill_backend("mgmt03")?;
    wait_until("it is out", || {
        ask(40)?;
        Ok(bed.shown("mgmt03")?["state"] == "down")
    })?;
    let detail = bed.shown("mgmt03")?["check"]["detail"].clone();
    ensure!(detail.as_str().is_some_and(|said| said.contains("connection")), "{detail}");
    bed.wait_for_event("it refused connections of clients")?;
    for name in ["mgmt01", "mgmt02"] {
        bed.kill_backend(name)?;
    }
    wait_until("one is left", || {
        ask(40)?;
        let up = bed.json(&["list", "services", "--json"])?[0]["backends_up"].clone();
        Ok(up == 1)
    })?;
    ask(100)?;
    ensure!(
        bed.json(&["list", "services", "--json"])?[0]["backends_up"] == 1,
        "the last one is out"
    );
    // Checks bring them back.
    for name in ["mgmt01", "mgmt02", "mgmt03"] {
        bed.start_backend(name)?;
    }
    bed.wait_for_up(3)
}

#[test]
fn a_backend_that_flaps_changes_its_state_no_more_often_than_rise_and_fall_let_it() -> Result<()> {
    /// Checks are made so often; three that fail take a backend down.
    const INTERVAL: Duration = Duration::from_millis(200);
    let bed = bed(3, |text| {
        text.replace(
            "[service.check]",
            "[service.check]\npath = \"/upload/ready\"\nrise = 2\nfall = 3",
        )
    })?;
    for name in ["mgmt01", "mgmt02", "mgmt03"] {
        fs::write(bed.backend_file(name, "upload/ready"), "")?;
        bed.wait_for_state(name, "up")?;
    }
    let mut held = client::held(&bed, 12)?;
    held.retain(|(name, _)| name != "mgmt02");
    let file = bed.backend_file("mgmt02", "upload/ready");
    let changes = || -> Result<usize> {
        let events = bed.lb_ok(&["events"])?;
        let of_it = events.lines().filter(|line| line.contains("backend=mgmt02"));
        Ok(of_it.filter(|line| line.contains("  up  ") || line.contains("  down  ")).count())
    };
    let mut flap = |times: usize, pause: Duration| -> Result<()> {
        for _ in 0..times {
            fs::remove_file(&file)?;
            thread::sleep(pause);
            fs::write(&file, "")?;
            thread::sleep(pause);
            for (name, connection) in &mut held {
                ensure!(connection.request()? == *name, "a connection of another one moved");
            }
        }
        Ok(())
    };
    // Too short for three checks.
    let before = changes()?;
    flap(8, INTERVAL * 3 / 2)?;
    ensure!(changes()? == before, "{}", bed.lb_ok(&["events"])?);
    ensure!(bed.shown("mgmt02")?["state"] == "up");
    // Every second, for a minute.
    let times = 30;
    flap(times, Duration::from_secs(1))?;
    let seen = changes()? - before;
    ensure!((1..=2 * times).contains(&seen), "{seen} changes: {}", bed.lb_ok(&["events"])?);
    Ok(())
}
