//! What stands at the top of a configuration, and how it gets here.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use super::{VALID, check};

#[test]
fn values_that_would_only_fail_later_are_refused() {
    let with = |line: &str| check(&format!("{line}\n{VALID}"));
    for (line, wanted) in [
        ("log = \"infoo\"", "\"infoo\" is no level of a log"),
        ("log = \"lb=loud\"", "\"lb=loud\" is no level of a log"),
        ("log = \"\"", "\"\" is no level of a log"),
        ("socket = \"\"", "\"\" is no path from the root"),
        ("socket = \"/\"", "\"/\" is no path from the root"),
        ("pin_path = \"pins\"", "\"pins\" is no path from the root"),
        ("user = \"0\"", "\"0\" is no user's name"),
        ("user = \"\"", "\"\" is no user's name"),
        ("user = \"root:root\"", "\"root:root\" is no user's name"),
    ] {
        let (status, error) = with(line);
        assert_eq!(status, Some(2), "{line}");
        assert!(error.starts_with("FILE:1:") && error.contains(wanted), "{line}: {error}");
    }
    for line in ["log = \"debug\"", "log = \"warn,lb_userspace=trace\"", "log = \"OFF\""] {
        assert_eq!(with(line), (Some(0), String::new()), "{line}");
    }
}

#[test]
fn a_configuration_may_come_by_a_pipe() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lb"))
        .args(["check", "--quiet", "-c", "/dev/stdin"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("lb runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(VALID.as_bytes()).expect("written");
    drop(pipe);
    assert!(child.wait().expect("it ends").success());
}
