//! How connections are shared out: in turn, to the backend with the fewest, and within bounds.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_common::datapath::Reason;
use lb_tests::{
    bed::{Bed, SERVICE},
    client::{self, Connection},
    frame::Segment,
    pair::Pair,
    rivals::{HAPROXY, Haproxy},
    seen::Seen,
    wait::wait_until,
    world::{CLIENT, TURN_VIP, World},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// A balancer with so many backends, with keys of its service, and with the weights of its backends.
fn bed(keys: &str, weights: &[u32]) -> Result<Bed> {
    let mut bed = Bed::without_controller(LB, "native", u8::try_from(weights.len())?)?;
    bed.write_config("")?;
    let mut text = fs::read_to_string(bed.config())?;
    text = text.replace("bind = ", &format!("{keys}\nbind = "));
    for (number, weight) in (101..).zip(weights) {
        let address = format!("10.91.0.{number}:8080\"\n");
        text = text.replace(&address, &format!("{address}weight = {weight}\n"));
    }
    fs::write(bed.config(), text)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(weights.len() as u64)?;
    Ok(bed)
}

/// Who answers so many connections, one after the other, whose packets all pass on one CPU.
fn names_on_one_cpu(bed: &Bed, count: usize) -> Result<Vec<String>> {
    let address: SocketAddr = SERVICE.parse()?;
    client::within(&bed.client, move || {
        let mut first = CpuSet::new();
        first.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &first)?;
        let name = |_| {
            let answer = Connection::connect(address)?.request();
            answer.map_err(std::io::Error::other)
        };
        (0..count).map(name).collect()
    })
}

#[test]
fn on_a_cpu_turns_are_taken_exactly() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let mut turns = Vec::new();
    for port in 0..60 {
        let syn = Segment::syn((CLIENT.0, 20_000 + port), TURN_VIP).build();
        let outcome = pair.expect("a SYN", &syn, Reason::Opened)?;
        turns.push(Seen::new(&outcome.frame).destination);
    }
    for three in turns.chunks(3) {
        ensure!(three[0] != three[1] && three[1] != three[2] && three[2] != three[0], "{three:?}");
        ensure!(*three == turns[..3], "{three:?} after {:?}", &turns[..3]);
    }
    pair.compare_tables()
}

#[test]
fn in_turn_backends_get_connections_as_their_weights_say() -> Result<()> {
    let bed = bed("balance = \"roundrobin\"", &[3, 2, 1])?;
    let names = names_on_one_cpu(&bed, 60)?;
    let count = |name: &str| names.iter().filter(|one| *one == name).count();
    let counts = ["mgmt01", "mgmt02", "mgmt03"].map(count);
    // A frame that comes in while another CPU still works on those before it is that one's.
    let is_fair =
        counts.iter().zip([30usize, 20, 10]).all(|(count, fair)| count.abs_diff(fair) <= 3);
    ensure!(is_fair, "{names:?}");
    // However many CPUs there are.
    for _ in 0..600 {
        bed.request()?;
    }
    let (mut all, mut flows) = (0.0, BTreeMap::new());
    for (name, weight) in [("mgmt01", 3.0), ("mgmt02", 2.0), ("mgmt03", 1.0)] {
        let new = bed.new_flows(name)? as f64;
        all += new;
        flows.insert(name, (new, weight));
    }
    for (name, (new, weight)) in flows {
        let fair = all * weight / 6.0;
        ensure!((new - fair).abs() <= all / 100.0, "{name}: {new} of {all}");
    }
    // One that drains has no turn, and another weight holds at once.
    bed.lb_ok(&["drain", "ui/mgmt01"])?;
    bed.lb_ok(&["weight", "ui/mgmt03", "4"])?;
    let names = names_on_one_cpu(&bed, 12)?;
    let of_third = names.iter().filter(|name| *name == "mgmt03").count();
    ensure!(of_third.abs_diff(8) <= 1 && !names.contains(&"mgmt01".to_owned()), "{names:?}");
    ensure!(bed.json(&["list", "services", "--json"])?[0]["balance"] == "roundrobin");
    Ok(())
}

/// How many of some connections each backend has.
fn counts(held: &[(String, Connection)]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for (name, _) in held {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

#[test]
fn the_backend_with_the_fewest_connections_gets_the_next_one() -> Result<()> {
    let mut bed = bed("balance = \"leastconn\"", &[1, 1, 2])?;
    let mut held = client::held(&bed, 16)?;
    let shares = BTreeMap::from([("mgmt01", 4), ("mgmt02", 4), ("mgmt03", 8)]);
    ensure!(counts(&held) == shares, "{:?}", counts(&held));
    // Those that end make room, and it is known also to the next controller.
    held.retain(|(name, _)| name != "mgmt02");
    bed.stop_controller(Signal::SIGKILL)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(3)?;
    held.extend(client::held(&bed, 4)?);
    ensure!(counts(&held) == shares, "{:?}", counts(&held));
    // What ends by a reset is known after some seconds at the latest.
    let (gone, stay): (Vec<_>, Vec<_>) = held.into_iter().partition(|(name, _)| name == "mgmt03");
    for (_, connection) in gone {
        connection.abort()?;
    }
    let mut held = stay;
    held.extend(client::held(&bed, 8)?);
    ensure!(counts(&held) == shares, "{:?}", counts(&held));
    Ok(())
}

#[test]
fn within_bounds_no_backend_has_much_more_than_its_share() -> Result<()> {
    let bed = bed("max_load = 1.25", &[1, 1, 1])?;
    let mut held = Vec::new();
    for number in 1..=40_usize {
        held.extend(client::held(&bed, 1)?);
        // A quarter more than the mean, rounded up.
        let most = (number * 5).div_ceil(12);
        let counts = counts(&held);
        ensure!(counts.values().all(|count| *count <= most), "{number}: {counts:?}");
    }
    Ok(())
}

/// Where the slow servers listen.
const PORT: u16 = 9300;

/// Answers each connection after some time, as one that takes so long to work.
fn serve(bed: &Bed, name: &str, delay: Duration, over: &Arc<AtomicBool>) -> Result<()> {
    let address: SocketAddr = format!("{}:{PORT}", bed.backend_address(name)?).parse()?;
    let listener =
        client::within(bed.backend_namespace(name)?, move || TcpListener::bind(address))?;
    let (name, over) = (name.to_owned(), Arc::clone(over));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}\n", name.len() + 1);
            thread::spawn(move || {
                let mut request = [0; 512];
                // A client that goes is gone.
                if stream.read(&mut request).is_ok() {
                    thread::sleep(delay);
                    let _: std::io::Result<()> = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    Ok(())
}

/// The slow backend's share of so many connections, of which some are always under way.
fn share_of_the_slow(bed: &Bed, address: &'static str) -> Result<f64> {
    const CLIENTS: usize = 12;
    const EACH: usize = 40;
    let address: SocketAddr = address.parse()?;
    let names = client::within(&bed.client, move || {
        let ask = move || -> std::io::Result<Vec<String>> {
            (0..EACH)
                .map(|_| {
                    let mut stream = TcpStream::connect(address)?;
                    stream.write_all(b"GET /client/ HTTP/1.1\r\nHost: test\r\n\r\n")?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    Ok(answer.lines().last().unwrap_or_default().to_owned())
                })
                .collect()
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(ask)).collect();
        let mut names = Vec::new();
        for client in clients {
            names.extend(client.join().map_err(|_| std::io::Error::other("a panic"))??);
        }
        Ok(names)
    })?;
    let slow = names.iter().filter(|name| *name == "mgmt03").count();
    ensure!(names.iter().all(|name| name.starts_with("mgmt")), "{names:?}");
    Ok(slow as f64 / names.len() as f64)
}

#[test]
fn a_slow_backend_gets_as_few_connections_as_from_haproxys_leastconn() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 3)?;
    let over = Arc::new(AtomicBool::new(false));
    for (name, delay) in [("mgmt01", 10), ("mgmt02", 10), ("mgmt03", 80)] {
        serve(&bed, name, Duration::from_millis(delay), &over)?;
    }
    bed.write_config("")?;
    let text = fs::read_to_string(bed.config())?;
    let text = text.replace("bind = ", "balance = \"leastconn\"\nbind = ");
    let text = text.replace("[service.check]", "[service.check]\ntype = \"tcp\"");
    let addresses = ["101", "102", "103"];
    let with_port = addresses.iter().fold(text, |text, host| {
        text.replace(&format!("10.91.0.{host}:8080"), &format!("10.91.0.{host}:{PORT}"))
    });
    fs::write(bed.config(), with_port)?;
    bed.start_controller(&[])?;
    bed.wait_for_up(3)?;
    let _haproxy = Haproxy::with_balance(&bed, "leastconn", PORT, &["mgmt01", "mgmt02", "mgmt03"])?;
    wait_until("HAProxy serves", || {
        Ok(bed.client.run("curl", &["-sf", &format!("http://{HAPROXY}/client/")]).is_ok())
    })?;
    let mut shares = Vec::new();
    // By turns, since the machine may have other things to do.
    for _ in 0..3 {
        shares.push((share_of_the_slow(&bed, SERVICE)?, share_of_the_slow(&bed, HAPROXY)?));
    }
    over.store(true, Ordering::Relaxed);
    println!("the slow one's share, lb and HAProxy: {shares:?}");
    let mean = |part: fn(&(f64, f64)) -> f64| shares.iter().map(part).sum::<f64>() / 3.0;
    let (ours, theirs) = (mean(|(ours, _)| *ours), mean(|(_, theirs)| *theirs));
    ensure!((ours - theirs).abs() <= 0.05, "lb {ours}, HAProxy {theirs}");
    ensure!(ours < 0.25, "a third of the backends, and eight times slower: {ours}");
    let flows = bed.json(&["list", "services", "--json"])?[0]["new_flows"].as_u64();
    ensure!(flows.context("new_flows")? >= 3 * 480, "they went by lb");
    Ok(())
}
