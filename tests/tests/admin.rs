//! The admin pages.

use std::{
    io::Write,
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use lb_common::abi::maps;
use lb_tests::{bed::Bed, client, wait::wait_until};
use lb_userspace::dataplane::Pins;
use serde_json::Value;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

#[test]
fn the_pages_show_what_the_commands_do() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    bed.start_controller(&["--admin", "10.91.0.10:8404"])?;
    bed.wait_for_up(2)?;
    for _ in 0..10 {
        bed.request()?;
    }
    let get = |path: &str| {
        bed.client.run("curl", &["-sS", "-i", &format!("http://10.91.0.10:8404{path}")])
    };
    let stats = get("/stats")?;
    ensure!(stats.starts_with("HTTP/1.1 200") && stats.contains("<td>mgmt01<td>"), "{stats}");
    let stats = get("/stats.json")?;
    let (_, body) = stats.split_once("\r\n\r\n").unwrap_or_default();
    let stats: Value = serde_json::from_str(body)?;
    ensure!(stats["services"] == bed.json(&["list", "services", "--json"])?, "{stats}");
    ensure!(get("/healthz")?.starts_with("HTTP/1.1 200"));
    ensure!(get("/readyz")?.starts_with("HTTP/1.1 200"));

    // A reload that is refused, and a check that fails.
    let good = std::fs::read_to_string(bed.config())?;
    std::fs::write(bed.config(), "nonsense")?;
    let refused = bed.lb_command(&[]).arg("--socket").arg(bed.socket()).arg("reload").output()?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    std::fs::write(bed.config(), good)?;
    bed.kill_backend("mgmt02")?;
    bed.wait_for_state("mgmt02", "down")?;
    let metrics = bed.client.run(
        "curl",
        &["-sS", "-H", "Accept: application/openmetrics-text", "http://10.91.0.10:8404/metrics"],
    )?;
    for line in [
        "# TYPE lb_service_new_flows counter",
        "lb_service_new_flows_total{service=\"ui\"} 10",
        "lb_backend_up{service=\"ui\",backend=\"mgmt01\"} 1.0",
        "lb_packets_total{reason=\"opened\"} 10",
        "lb_flow_table_capacity{table=\"established\"} 131072.0",
        "lb_xdp_mode{interface=\"eth0\",mode=\"native\"} 1.0",
        "# TYPE lb_check_duration_seconds histogram",
        "lb_config_reloads_total{result=\"refused\"} 1",
        "lb_config_reloads_total{result=\"applied\"} 0",
        "# EOF",
    ] {
        ensure!(metrics.lines().any(|shown| shown == line), "no {line} in {metrics}");
    }
    let failures = "lb_check_failures_total{service=\"ui\",backend=\"mgmt02\",cause=\"refused\"}";
    ensure!(metrics.contains(failures), "{metrics}");
    bed.start_backend("mgmt02")?;

    // What Prometheus thinks of the older format, which anybody gets who doesn't ask for the other.
    let text = bed.client.run("curl", &["-sS", "http://10.91.0.10:8404/metrics"])?;
    let file = bed.config().with_extension("metrics");
    std::fs::write(&file, &text)?;
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&file)?)
        .output()?;
    let said = [promtool.stdout, promtool.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(promtool.status.success() && said.is_empty(), "promtool: {said}\n{text}");

    for method in ["POST", "PUT", "DELETE"] {
        for path in ["/stats", "/stats.json", "/metrics", "/healthz", "/readyz"] {
            let url = format!("http://10.91.0.10:8404{path}");
            let answer = bed.client.run("curl", &["-sS", "-i", "-X", method, &url])?;
            ensure!(answer.starts_with("HTTP/1.1 405"), "{method} {path}: {answer}");
        }
    }

    bed.lb_ok(&["maint", "ui/mgmt01"])?;
    bed.lb_ok(&["maint", "ui/mgmt02"])?;
    let unready = get("/readyz")?;
    let why = "service ui has no backend";
    ensure!(unready.starts_with("HTTP/1.1 503") && unready.contains(why), "{unready}");
    bed.lb_ok(&["ready", "ui/mgmt01"])?;
    // Whatever becomes of the pins.
    std::fs::remove_file(Pins::new(bed.pins()).map(maps::SERVICE_INFO))?;
    wait_until("it is ready again", || Ok(get("/readyz")?.starts_with("HTTP/1.1 200")))?;
    ensure!(get("/metrics")?.starts_with("HTTP/1.1 200"));
    ensure!(get("/nowhere")?.starts_with("HTTP/1.1 404"));
    Ok(())
}

/// A process that ends with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.0.wait();
    }
}

#[test]
fn guests_who_ask_and_never_listen_take_little() -> Result<()> {
    const GUESTS: usize = 100;
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    bed.start_controller(&["--admin", "10.91.0.10:8404"])?;
    bed.wait_for_up(2)?;
    let process = bed.controller_pid()?;
    let threads =
        || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{process}/task"))?.count()) };
    let before = threads()?;
    let guests = client::within(&bed.client, || {
        let ask = |_| {
            let mut guest = TcpStream::connect("10.91.0.10:8404")?;
            guest.write_all("GET /metrics HTTP/1.1\r\nHost: lb\r\n\r\n".repeat(100).as_bytes())?;
            Ok(guest)
        };
        (0..GUESTS).map(ask).collect::<std::io::Result<Vec<TcpStream>>>()
    })?;
    let mut most = 0;
    for _ in 0..20 {
        let answer = bed
            .client
            .run("curl", &["-sS", "--max-time", "5", "http://10.91.0.10:8404/healthz"])?;
        ensure!(answer == "ok\n", "{answer}");
        most = most.max(threads()?);
    }
    drop(guests);
    // Each page is made by one thread at a time.
    ensure!(most <= before + 8, "{most} threads, {before} before");
    bed.wait_for_up(2)?;
    let told = bed.lb_ok(&["events"])?;
    ensure!(!told.contains("down  backend="), "checks failed meanwhile: {told}");
    Ok(())
}

#[test]
fn prometheus_scrapes_what_the_lists_show() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    bed.write_config("")?;
    bed.start_controller(&["--admin", "10.91.0.10:8404"])?;
    bed.wait_for_up(2)?;
    for _ in 0..7 {
        bed.request()?;
    }
    let home = bed.config().with_file_name("prometheus");
    std::fs::create_dir(&home)?;
    let config = home.join("prometheus.yml");
    std::fs::write(
        &config,
        "scrape_configs:\n- job_name: lb\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['10.91.0.10:8404']\n",
    )?;
    let log = std::fs::File::create(home.join("log"))?;
    let mut command = bed.client.command("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", home.join("data").display()));
    command.arg("--web.listen-address=127.0.0.1:9090");
    let _prometheus =
        Running(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    let query = |query: &str| -> Result<Value> {
        let url = "http://127.0.0.1:9090/api/v1/query";
        let query = format!("query={query}");
        let text = bed.client.run("curl", &["-sS", "-G", "--data-urlencode", &query, url])?;
        Ok(serde_json::from_str::<Value>(&text)?["data"]["result"].clone())
    };
    let value = |wanted: &str, is: &str| {
        wait_until(&format!("{wanted} is {is}"), || {
            let result = query(wanted).unwrap_or_default();
            Ok(result[0]["value"][1] == is)
        })
        .with_context(|| std::fs::read_to_string(home.join("log")).unwrap_or_default())
    };
    value("up{job='lb'}", "1")?;
    value("sum(lb_backend_up{service='ui'})", "2")?;
    value("lb_service_new_flows_total{service='ui'}", "7")?;
    value("count(lb_check_duration_seconds_count)", "2")?;
    bed.kill_backend("mgmt02")?;
    value("lb_backend_up{backend='mgmt02'}", "0")
}
