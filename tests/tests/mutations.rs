//! Mutated input: of the configuration's parser, the control socket and health checks. None of them panics, hangs or
//! grows.
//!
//! `LB_MUTATION_SECONDS` sets how long each is fed (default: 3), and `LB_RANDOM_SEED` repeats a run of the first.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lb_tests::setting;
use lb_userspace::{
    api::{self, Request, Response},
    config::Config,
    health::{Checker, Target, Turn, Verdict},
    journal::Journal,
};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

/// How much a process may grow meanwhile, in KB.
const MOST_GROWTH: u64 = 64 << 10;
/// How much of a processor's time one input may take.
const MOST_TIME: Duration = Duration::from_secs(1);

fn how_long() -> Duration {
    Duration::from_secs(setting("LB_MUTATION_SECONDS", 3))
}

/// What this thread has taken of a processor's time: others may have the processors meanwhile.
fn processor_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// What this process takes of memory, in KB.
fn memory() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Changes some bytes of an input: others, fewer, more, or those of a word of the trade.
fn mutated(random: &mut Rng, input: &[u8], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.usize(1..8) {
        let at = random.usize(0..=bytes.len());
        let end = (at + random.usize(0..40)).min(bytes.len());
        match random.u8(0..6) {
            0 if at < bytes.len() => bytes[at] = random.u8(..),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                let to = random.usize(0..=bytes.len());
                bytes.splice(to..to, part);
            }
            3 => {
                let word = words[random.usize(0..words.len())];
                bytes.splice(at..end, word.iter().copied());
            }
            4 => bytes.splice(at..at, std::iter::repeat_n(random.u8(..), 300)).for_each(drop),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

const CONFIGURATION: &str = include_str!("../../xtask/packaging/lb.toml");

#[test]
fn a_mutated_configuration_is_refused_or_taken() -> Result<()> {
    const WORDS: [&[u8]; 16] = [
        b"[[service]]",
        b"[[service.backend]]",
        b"[service.check]",
        b"\"\"",
        b"[",
        b"]]",
        b"9223372036854775808",
        b"-1",
        b"0x7fffffff",
        b"\"*:0\"",
        b"\"[::]:1\"",
        b"\"1e9h\"",
        b"\"0.0.0.0/0\"",
        b"=",
        b"\"\"\"",
        b"\xf0\x9f\x92\xa9",
    ];
    let seed = setting("LB_RANDOM_SEED", fastrand::u64(..));
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let mut corpus = vec![CONFIGURATION.as_bytes().to_vec()];
    let (mut valid, mut refused) = (0u64, 0u64);
    let before = memory()?;
    let end = Instant::now() + how_long();
    while Instant::now() < end {
        let number = random.usize(0..corpus.len());
        let input = mutated(&mut random, &corpus[number], &WORDS);
        let Ok(text) = std::str::from_utf8(&input) else { continue };
        let start = processor_time()?;
        match Config::parse(Path::new("lb.toml"), text) {
            Ok(config) => {
                valid += 1;
                ensure!(!config.services.is_empty());
                if corpus.len() < 200 {
                    corpus.push(input.clone());
                }
            }
            Err(invalid) => {
                refused += 1;
                ensure!(invalid.to_string().contains("lb.toml:"), "{invalid}");
            }
        }
        let taken = processor_time()? - start;
        ensure!(taken < MOST_TIME, "{text:?} took {taken:?}");
    }
    println!("{valid} valid, {refused} refused");
    ensure!(valid > 10 && refused > 10, "{valid} valid, {refused} refused");
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < MOST_GROWTH, "{grown} KB more");
    Ok(())
}

#[test]
fn the_control_socket_answers_mutated_requests_and_goes_on() -> Result<()> {
    const WORDS: [&[u8]; 8] = [
        b"\n",
        b"\0",
        b"\"Events\"",
        b"{\"Events\":{\"follow\":false}}",
        b"null",
        b"[[[[",
        b"65536",
        b"\xff",
    ];
    let directory = tempfile::TempDir::new()?;
    let path = directory.path().join("lb.sock");
    let runtime = tokio::runtime::Runtime::new()?;
    let (calls, mut incoming) = mpsc::channel::<api::Call>(16);
    {
        let _entered = runtime.enter();
        api::serve(&path, calls, Journal::new())?;
    }
    runtime.spawn(async move {
        while let Some((request, answer)) = incoming.recv().await {
            // Whoever asked may have gone.
            let _: Result<(), Response> = answer.send(Response::Done(format!("{request:?}")));
        }
    });
    let operate = br#"{"Operate":{"service":"ui","backend":"mgmt01","operation":{"Weight":3}}}"#;
    let corpus: [&[u8]; 4] = [b"\"Status\"\n", b"\"Reload\"\n", b"\"Config\"\n", operate];
    let mut random = Rng::new();
    let before = memory()?;
    let end = Instant::now() + how_long();
    let mut asked = 0u64;
    while Instant::now() < end {
        let number = random.usize(0..corpus.len());
        let mut input = mutated(&mut random, corpus[number], &WORDS);
        input.push(b'\n');
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(10 * MOST_TIME))?;
        // It may have had enough before the end.
        let _: std::io::Result<()> = stream.write_all(&input);
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => anyhow::bail!("{input:?}: {error}"),
        }
        asked += 1;
    }
    println!("{asked} requests");
    let answer = api::call(&path, &Request::Reload)?;
    ensure!(matches!(answer, Response::Done(_)), "{answer:?}");
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < MOST_GROWTH, "{grown} KB more");
    Ok(())
}

#[test]
fn checks_judge_mutated_answers_and_go_on() -> Result<()> {
    const CHECKERS: u16 = 8;
    const WORDS: [&[u8]; 10] = [
        b"\r\n\r\n",
        b"\r\n",
        b"HTTP/1.1 ",
        b"HTTP/2.0 200",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"100 Continue\r\n\r\n",
        b": ",
        b"\0",
        b"fffffffffffffffff\r\n",
    ];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    // As many as there may be connections, so that this end doesn't grow.
    for _ in 0..2 * CHECKERS {
        let listener = listener.try_clone()?;
        thread::spawn(move || {
            let mut random = Rng::new();
            let right = b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: 3\r\n\r\nok\n";
            for mut stream in listener.incoming().flatten() {
                let answer = mutated(&mut random, right, &WORDS);
                let mut request = [0; 512];
                // Whoever goes is gone.
                let _: std::io::Result<usize> = stream.read(&mut request);
                let _: std::io::Result<()> = stream.write_all(&answer);
            }
        });
    }
    let text = "[[service]]\nname = \"a\"\nbind = [\"192.0.2.1:80\"]\n[service.check]\ninterval = \"10ms\"\n\
                timeout = \"500ms\"\n[[service.backend]]\nname = \"a\"\naddress = \"192.0.2.2:80\"\n";
    let config = Config::parse(Path::new("lb.toml"), text)
        .map_err(|invalid| anyhow::anyhow!("{invalid}"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let _entered = runtime.enter();
    let counts: Vec<_> = (0..CHECKERS).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let before = memory()?;
    let start = |number: u16| {
        let count = Arc::clone(&counts[usize::from(number)]);
        let phase = f64::from(number) / f64::from(CHECKERS);
        let check = Arc::clone(&config.services[0].check);
        let turn = Turn { phase, first_round: check.interval, is_suspect: false };
        let way = (None, Arc::default());
        Checker::start(check, Target::Own(address), way, Verdict::Unknown, turn, move |report| {
            assert!(!report.detail.is_empty());
            count.fetch_add(1, Ordering::Relaxed);
            async {}
        })
    };
    let checkers: Vec<Checker> = (0..CHECKERS).map(start).collect();
    thread::sleep(how_long());
    let counted = || counts.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let so_far = counted();
    lb_tests::wait::wait_until("all go on", || {
        Ok(counted().iter().zip(&so_far).all(|(now, before)| now > before))
    })?;
    drop(checkers);
    println!("{} checks", so_far.iter().sum::<u64>());
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < MOST_GROWTH, "{grown} KB more");
    Ok(())
}
