//! The admin pages.

use anyhow::{Result, ensure};
use lb_tests::bed::Bed;
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

    let metrics = get("/metrics")?;
    for line in [
        "# TYPE lb_service_new_flows counter",
        "lb_service_new_flows_total{service=\"ui\"} 10",
        "lb_backend_up{service=\"ui\",backend=\"mgmt01\"} 1.0",
        "lb_packets_total{reason=\"opened\"} 10",
        "lb_flow_table_capacity{table=\"established\"} 131072.0",
        "lb_xdp_mode{interface=\"eth0\",mode=\"native\"} 1.0",
        "# EOF",
    ] {
        ensure!(metrics.lines().any(|shown| shown == line), "no {line} in {metrics}");
    }

    bed.lb_ok(&["maint", "ui/mgmt01"])?;
    bed.lb_ok(&["maint", "ui/mgmt02"])?;
    ensure!(get("/readyz")?.starts_with("HTTP/1.1 503"));
    ensure!(get("/nowhere")?.starts_with("HTTP/1.1 404"));
    Ok(())
}
