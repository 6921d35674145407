//! `lb check`: what is wrong with a configuration, where, and what to write instead.

mod odd_checks;
mod places;
mod top;

use std::{fs, process::Command};

const VALID: &str = r#"interfaces = ["eth0"]

[[service]]
name = "cloudstack-ui"
bind = ["192.0.2.100:8080"]

[service.check]
path = "/client/"

[[service.backend]]
name = "mgmt01"
address = "192.0.2.101:8080"

[[service.backend]]
name = "mgmt02"
address = "192.0.2.102:8080"
"#;

/// Exit status, and what stands on standard error without the file's path.
fn check(text: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("lb.toml");
    fs::write(&file, text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_lb"))
        .args(["check", "-c"])
        .arg(&file)
        .output()
        .expect("lb runs");
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    (output.status.code(), error.replace(&file.display().to_string(), "FILE"))
}

/// Changes one thing in a valid configuration, and demands what is said of it.
#[track_caller]
fn wrong(old: &str, new: &str, wanted: &str) {
    assert!(VALID.contains(old), "{old}");
    let (status, error) = check(&VALID.replacen(old, new, 1));
    assert_eq!(status, Some(2), "{error}");
    assert_eq!(
        error,
        format!("{}\nlb: the configuration has a problem\n", wanted.trim_start()),
        "{new}"
    );
}

#[test]
fn a_valid_configuration_is_valid() {
    assert_eq!(check(VALID), (Some(0), String::new()));
}

#[test]
fn an_unknown_key_is_named_with_those_that_are_known() {
    let (status, error) = check(&VALID.replace("path =", "pth ="));
    assert_eq!(status, Some(2));
    assert!(error.starts_with("FILE:8:1: unknown field \"pth\"\n    pth = "), "{error}");
    assert!(error.contains("hint: did you mean \"path\"?"), "{error}");
    let (_, error) = check(&VALID.replace("path =", "url ="));
    assert!(error.contains("hint: expected one of \"type\", \"track\", \"method\""), "{error}");
}

#[test]
fn a_port_out_of_range() {
    wrong(
        "192.0.2.101:8080",
        "192.0.2.101:70000",
        r#"
FILE:12:11: port 70000 is out of range: 1 to 65535
    address = "192.0.2.101:70000"
              ^~~~~~~~~~~~~~~~~~~
    hint: write an address and a port, as in "192.0.2.1:8080" or "[2001:db8::1]:8080""#,
    );
}

#[test]
fn a_backend_given_twice() {
    wrong(
        "192.0.2.102:8080",
        "192.0.2.101:8080",
        r#"
FILE:16:11: 192.0.2.101:8080 is given twice: as "mgmt01" and as "mgmt02"
    address = "192.0.2.101:8080"
              ^~~~~~~~~~~~~~~~~~
    hint: remove one of them; a larger weight gives a backend more flows"#,
    );
    wrong(
        "mgmt02",
        "mgmt01",
        r#"
FILE:15:8: backend "mgmt01" is given twice
    name = "mgmt01"
           ^~~~~~~~
    hint: give each backend a name of its own"#,
    );
}

#[test]
fn networks_that_may_and_may_not_connect() {
    let bind = "bind = [\"192.0.2.100:8080\"]";
    wrong(
        bind,
        &format!("{bind}\nallow = [\"192.0.2.7/24\"]"),
        r#"
FILE:6:10: "192.0.2.7/24" has bits set behind its prefix: the network is 192.0.2.0/24
    allow = ["192.0.2.7/24"]
             ^~~~~~~~~~~~~~
    hint: write it as "192.0.2.0/24", "2001:db8::/32" or "192.0.2.7""#,
    );
    wrong(
        bind,
        &format!("{bind}\nallow = [\"192.0.2.7\"]\ndeny = [\"192.0.2.7/32\"]"),
        r#"
FILE:7:9: 192.0.2.7/32 stands in both allow and deny
    deny = ["192.0.2.7/32"]
            ^~~~~~~~~~~~~~
    hint: remove it from one of them"#,
    );
}

#[test]
fn what_becomes_of_flows_and_how_long_clients_stay() {
    let bind = "bind = [\"192.0.2.100:8080\"]";
    wrong(
        bind,
        &format!("{bind}\non_down = \"kill\""),
        r#"
FILE:6:11: "kill" is no on_down
    on_down = "kill"
              ^~~~~~
    hint: write "reset", "move", "keep""#,
    );
    wrong(
        bind,
        &format!("{bind}\naffinity = \"1year\""),
        r#"
FILE:6:12: "1year" is out of range: 10ms to 30days
    affinity = "1year"
               ^~~~~~~
    hint: write it as "500ms", "2s" or "30m""#,
    );
}

#[test]
fn two_services_on_one_address_and_port() {
    let second = VALID.replace("interfaces = [\"eth0\"]\n", "").replace("cloudstack-ui", "other");
    let (status, error) = check(&format!("{VALID}{second}"));
    assert_eq!(status, Some(2));
    assert_eq!(
        error,
        r#"FILE:20:9: 192.0.2.100:8080/tcp is already bound by service "cloudstack-ui"
    bind = ["192.0.2.100:8080"]
            ^~~~~~~~~~~~~~~~~~
    hint: give it another address or port, or add the backends to that service
lb: the configuration has a problem
"#
    );
}

#[test]
fn every_problem_is_told_at_once_in_the_files_order() {
    let text = VALID
        .replace("path = \"/client/\"", "path = \"client\"\ninterval = \"2\"\nrise = 0")
        .replace("192.0.2.102:8080", "192.0.2.102");
    let (status, error) = check(&text);
    assert_eq!(status, Some(2));
    let places: Vec<&str> = error.lines().filter_map(|line| line.strip_prefix("FILE:")).collect();
    assert_eq!(
        places,
        [
            "8:8: \"client\" is no path",
            "9:12: \"2\" is no duration: time unit needed, for example 2sec or 2ms",
            "10:8: rise 0 is out of range: 1 to 1000",
            "18:11: \"192.0.2.102\" has no port",
        ]
    );
}

#[test]
fn another_port_is_refused_where_it_cant_be_translated() {
    let changed = |forwarding: &str| {
        VALID
            .replace("[service.check]", &format!("forwarding = \"{forwarding}\"\n[service.check]"))
            .replace("192.0.2.102:8080", "192.0.2.102:8081")
    };
    for translating in ["full-nat", "nat"] {
        assert_eq!(check(&changed(translating)), (Some(0), String::new()));
    }
    for forwarding in ["dsr", "ipip", "gue"] {
        let wanted = format!(
            r#"FILE:17:11: port 8081 of the backend differs from port 8080 that the service is bound to, and forwarding "{forwarding}" doesn't translate ports
    address = "192.0.2.102:8081"
              ^~~~~~~~~~~~~~~~~~
    hint: give both the same port, or write forwarding = "full-nat" or "nat"
lb: the configuration has a problem
"#
        );
        assert_eq!(check(&changed(forwarding)), (Some(2), wanted));
    }
}

#[test]
fn addresses_of_two_families_need_an_outer_header() {
    let ipv6 = VALID.replace("192.0.2.100", "[2001:db8::100]");
    let both =
        ipv6.replace("192.0.2.10", "[2001:db8::10]").replace("]1:", "]:").replace("]2:", "]:");
    let both = both.replacen("[2001:db8::10]:8080\"\n\n[[", "[2001:db8::11]:8080\"\n\n[[", 1);
    assert_eq!(check(&both), (Some(0), String::new()));
    for forwarding in ["full-nat", "nat", "dsr"] {
        let text = ipv6
            .replace("[service.check]", &format!("forwarding = \"{forwarding}\"\n[service.check]"));
        let (status, error) = check(&text);
        assert_eq!(status, Some(2));
        let wanted = format!(
            "FILE:5:9: a backend's address isn't of the same family, IPv4 or IPv6, and forwarding \
             \"{forwarding}\" doesn't translate between them\n"
        );
        assert!(error.starts_with(&wanted), "{error}");
    }
    for forwarding in ["ipip", "gue"] {
        let text = ipv6
            .replace("[service.check]", &format!("forwarding = \"{forwarding}\"\n[service.check]"));
        assert_eq!(check(&text), (Some(0), String::new()));
    }
    let mixed = VALID.replace("192.0.2.100", "*").replace("192.0.2.102", "[2001:db8::102]");
    let (_, error) = check(&mixed);
    assert!(error.starts_with("FILE:5:8: backends of both families, IPv4 and IPv6\n"), "{error}");
}

#[test]
fn one_address_and_port_is_for_tcp_and_for_udp() {
    let second = VALID.replace("interfaces = [\"eth0\"]\n", "").replace("cloudstack-ui", "dns");
    let second = second.replace("[service.check]\npath = \"/client/\"\n", "protocol = \"udp\"\n");
    assert_eq!(check(&format!("{VALID}{second}")), (Some(0), String::new()));
    let (status, error) = check(&format!("{VALID}{second}{}", second.replace("dns", "ntp")));
    assert_eq!(status, Some(2));
    assert!(error.contains("192.0.2.100:8080/udp is already bound by service \"dns\""), "{error}");
}

#[test]
fn words_are_told_where_one_is_wanted() {
    wrong(
        "[service.check]",
        "balance = \"lestconn\"\n[service.check]",
        r#"
FILE:7:11: "lestconn" is no balance
    balance = "lestconn"
              ^~~~~~~~~~
    hint: write "maglev", "source", "roundrobin", "leastconn""#,
    );
}

#[test]
fn broken_toml_is_told_with_its_place() {
    let (status, error) = check(&VALID.replace("[service.check]", "[service.check"));
    assert_eq!(status, Some(2));
    assert!(error.starts_with("FILE:7:15: "), "{error}");
}

#[test]
fn odd_values_are_refused() {
    for (old, new) in [
        ("192.0.2.101:8080", "192.0.2.101:0"),
        ("192.0.2.101:8080", "192.0.2.101:-1"),
        ("192.0.2.101:8080", "192.0.2.256:8080"),
        ("192.0.2.101:8080", "0.0.0.0:8080"),
        ("192.0.2.101:8080", "127.0.0.1:8080"),
        ("192.0.2.101:8080", "2001:db8::1:8080"),
        ("192.0.2.101:8080", "[2001:db8::g]:8080"),
        ("192.0.2.101:8080", "[fe80::1]:8080"),
        ("192.0.2.101:8080", "[::]:8080"),
        ("192.0.2.101:8080", "[::ffff:192.0.2.1]:8080"),
        ("192.0.2.101:8080", "*:8080"),
        ("192.0.2.101:8080", "mgmt 01.example.com:8080"),
        ("192.0.2.101:8080", "mgmt01..example.com:8080"),
        ("192.0.2.101:8080", "-mgmt01.example.com:8080"),
        ("192.0.2.101:8080", "mgmt01.example.com"),
        ("192.0.2.101:8080", "mgmt01.example.com:0"),
        ("192.0.2.100:8080", "cloud.example.com:8080"),
        ("[[service]]", "[dns]\nservers = [\"ns.example.com\"]\n[[service]]"),
        ("192.0.2.100:8080", "*:0"),
        ("192.0.2.100:8080", "0.0.0.0:8080"),
        ("\"eth0\"", "\"\""),
        ("\"eth0\"", "\"eth0\", \"eth0\""),
        ("cloudstack-ui", "cloudstack/ui"),
        ("cloudstack-ui", ""),
        ("mgmt01", "a name with blanks"),
        ("[service.check]", "forwarding = \"dsr\"\n[service.check]\nobserve = \"connect\""),
        ("name = \"mgmt02\"", "name = \"mgmt02\"\ntrack = \"mgmt01\""),
        ("name = \"mgmt02\"", "name = \"mgmt02\"\ntrack = \"cloudstack-ui/mgmt03\""),
        ("name = \"mgmt02\"", "name = \"mgmt02\"\ntrack = \"cloudstack-ui/mgmt02\""),
        ("name = \"mgmt02\"", "name = \"mgmt02\"\ncheck_port = 0"),
        ("name = \"mgmt02\"", "name = \"mgmt02\"\ncheck_address = \"127.0.0.1\""),
        ("name = \"cloudstack-ui\"", "name = \"cloudstack-ui\"\non_all_down = \"panic\""),
        ("name = \"cloudstack-ui\"", "name = \"cloudstack-ui\"\nslow_start = \"soon\""),
        ("name = \"cloudstack-ui\"", "name = \"cloudstack-ui\"\nmax_load = 0.9"),
        (
            "name = \"cloudstack-ui\"",
            "name = \"cloudstack-ui\"\nmax_load = 2.0\nbalance = \"leastconn\"",
        ),
        ("interfaces =", "hash_seed = -1\ninterfaces ="),
        ("interfaces =", "admin = \"everywhere\"\ninterfaces ="),
        ("interfaces =", "xdp_mode = \"fast\"\ninterfaces ="),
        ("[[service]]", "[nat]\nports = \"2000-1000\"\n[[service]]"),
        ("[[service]]", "[nat]\naddresses = [\"everywhere\"]\n[[service]]"),
        ("[[service]]", "[limits]\nflows = 0\n[[service]]"),
    ]
    .iter()
    .chain(odd_checks::ODD_CHECKS)
    {
        let (status, error) = check(&VALID.replacen(old, new, 1));
        assert_eq!(status, Some(2), "{new}: {error}");
        assert!(error.starts_with("FILE:") && error.contains("\n    "), "{new}: {error}");
    }
}

#[test]
fn a_service_needs_an_address_and_a_backend() {
    let (status, error) = check("");
    assert_eq!(status, Some(2));
    assert!(error.starts_with("FILE:1:1: no service"), "{error}");
    let (status, error) = check("[[service]]\nname = \"ui\"\nbind = []\n");
    assert_eq!(status, Some(2));
    assert!(error.contains("FILE:2:8: service \"ui\" has no backend"), "{error}");
    assert!(error.contains("FILE:3:8: no address"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_one_clear_line() {
    let output = Command::new(env!("CARGO_BIN_EXE_lb"))
        .args(["check", "-c", "/nowhere/lb.toml"])
        .output()
        .expect("lb runs");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "lb: /nowhere/lb.toml: no such file\n");
    let output = Command::new(env!("CARGO_BIN_EXE_lb"))
        .args(["check", "-c", "/"])
        .output()
        .expect("lb runs");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn usage_errors_exit_with_two() {
    for arguments in [&["lst"][..], &["list"], &["list", "everything"], &["drain", "mgmt01"], &[]] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_lb")).args(arguments).output().expect("lb runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_segment_size_that_no_tcp_has_and_one_for_udp() {
    wrong(
        "[service.check]\n",
        "mss = 100\n[service.check]\n",
        r#"
FILE:7:7: mss 100 is out of range: 536 to 65495
    mss = 100
          ^~~
    hint: write a number from 536 to 65495"#,
    );
    wrong(
        "[service.check]\n",
        "mss = 1400\nprotocol = \"udp\"\n[service.check]\n",
        r#"
FILE:7:7: mss is TCP's, and the service is UDP
    mss = 1400
          ^~~~
    hint: leave it out"#,
    );
}
