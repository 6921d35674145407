//! Rules of the repository that no compiler checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lb_common::datapath::Reason;
use lb_tests::object;

const LONGEST_FILE: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

/// Every Rust file of the project, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let crates = ["lb-common", "lb-ebpf", "lb-userspace", "tests", "xtask"];
    let mut directories: Vec<PathBuf> = crates.map(|name| root().join(name)).to_vec();
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                sources.push((path, text));
            }
        }
    }
    assert!(sources.len() > 50, "these aren't all");
    sources
}

#[test]
fn no_file_is_too_long() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{}: {lines} lines", path.display());
    }
}

#[test]
fn the_packet_path_is_inlined() {
    let packet_path = Path::new("lb-common/src/datapath");
    let mut functions = 0;
    for (path, text) in sources() {
        // Reasons have names and descriptions, which the program doesn't use.
        let inside = path.starts_with(root().join(packet_path)) && !path.ends_with("verdict.rs");
        if !inside {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines: Vec<&str> = code.lines().map(str::trim).collect();
        for (index, line) in lines.iter().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let declares = words.iter().take(3).any(|word| *word == "fn");
            if !declares || line.starts_with("//") || line.ends_with(';') || in_trait(&lines, index)
            {
                continue;
            }
            functions += 1;
            let before = lines[..index].iter().rev().take_while(|line| line.starts_with('#'));
            assert!(
                before.clone().any(|line| *line == "#[inline(always)]"),
                "{}:{}: {line}",
                path.display(),
                index + 1
            );
        }
    }
    assert!(functions > 15, "only {functions} were looked at");
}

/// Whether a line lies within a trait's declaration, whose functions have no bodies.
fn in_trait(lines: &[&str], index: usize) -> bool {
    let start = lines[..index].iter().rposition(|line| line.starts_with("pub trait "));
    start.is_some_and(|start| !lines[start..index].contains(&"}"))
}

#[test]
fn each_program_is_one_function_within_its_budget() {
    const MOST_INSTRUCTIONS: [(&str, usize); 20] = [
        ("lb", 2600),
        ("lb_ipv6", 2800),
        ("lb_look_up", 5100),
        ("lb_look_up_ipv6", 6300),
        ("lb_icmp", 3200),
        ("lb_icmpv6", 4500),
        ("lb_tagged", 200),
        ("lb_ipv4", 2700),
        ("lb_fragment", 2000),
        ("lb_fragment_ipv6", 3000),
        ("lb_options", 500),
        ("lb_open", 5000),
        ("lb_open_ipv6", 6500),
        ("lb_record", 4000),
        ("lb_record_ipv6", 4500),
        ("lb_trouble", 6000),
        ("lb_trouble_ipv6", 6500),
        ("lb_finish", 500),
        ("lb_too_big", 500),
        ("lb_too_big_ipv6", 1000),
    ];
    const MOST_STACK: u16 = 440;
    let programs = object::programs();
    assert_eq!(programs.len(), MOST_INSTRUCTIONS.len());
    for (name, most) in MOST_INSTRUCTIONS {
        let found = programs.iter().find(|(found, _)| found == name);
        let (_, instructions) = found.expect("the program");
        // memset, memcpy and memmove, or a function that wasn't inlined.
        let calls = instructions.iter().filter(|instruction| instruction.calls_function()).count();
        assert_eq!(calls, 0, "{name} calls functions of its own");
        let count = instructions.len();
        assert!(count <= most, "{name}: {count} instructions");
        // Of 512 bytes that a program has.
        let stack = object::stack(instructions);
        assert!(stack <= MOST_STACK, "{name}: {stack} bytes of stack");
        assert!(count > most / 3, "{name}: {count} instructions: is this the program?");
    }
}

#[test]
fn every_reason_is_documented() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for reason in Reason::ALL {
        let row = format!("| `{}` | {} |", reason.name(), reason.kind().name());
        assert!(readme.contains(&row), "README.md lacks the row {row}");
    }
}
