//! Backends by name: looked up again as their names' answers say, and kept where nobody answers.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use lb_tests::{bed::Bed, client, wait::wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");
/// Where the server of names is: at the client.
const SERVER: &str = "10.91.0.1:53";
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 101);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 102);

/// What a server of names knows, and what it was asked.
#[derive(Default)]
struct Zone {
    addresses: HashMap<String, Vec<Ipv4Addr>>,
    /// It has a problem, whatever is asked.
    fails: bool,
    asked: usize,
}

/// A server of names, until it is dropped.
struct Server {
    zone: Arc<Mutex<Zone>>,
    over: Arc<AtomicBool>,
}

impl Server {
    fn start(bed: &Bed) -> Result<Self> {
        let socket = client::within(&bed.client, || UdpSocket::bind(SERVER))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (zone, over) = (Arc::<Mutex<Zone>>::default(), Arc::<AtomicBool>::default());
        let (shared, is_over) = (Arc::clone(&zone), Arc::clone(&over));
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !is_over.load(Ordering::Relaxed) {
                // Nothing was asked.
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let answered = answer(&buffer[..length], &shared)
                    .and_then(|answer| Ok(socket.send_to(&answer, client)?));
                if let Err(error) = answered {
                    eprintln!("a question of {client}: {error}");
                }
            }
        });
        Ok(Self { zone, over })
    }

    fn zone(&self) -> Result<MutexGuard<'_, Zone>> {
        self.zone.lock().map_err(|_| anyhow!("poisoned"))
    }

    fn set(&self, name: &str, addresses: &[Ipv4Addr]) -> Result<()> {
        self.zone()?.addresses.insert(format!("{name}."), addresses.to_vec());
        Ok(())
    }

    /// Waits until what was set has been asked for.
    fn wait_until_asked(&self) -> Result<()> {
        let before = self.zone()?.asked;
        // The one before may still be on its way.
        wait_until("names are asked for again", || Ok(self.zone()?.asked > before + 3))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn answer(question: &[u8], zone: &Mutex<Zone>) -> Result<Vec<u8>> {
    let question = Message::from_vec(question)?;
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_available = true;
    let mut zone = zone.lock().map_err(|_| anyhow!("poisoned"))?;
    zone.asked += 1;
    for query in &question.queries {
        answer.add_query(query.clone());
        let known = zone.addresses.get(&query.name().to_ascii());
        answer.metadata.response_code = match known {
            _ if zone.fails => ResponseCode::ServFail,
            None => ResponseCode::NXDomain,
            Some(_) => ResponseCode::NoError,
        };
        if zone.fails || query.query_type() != RecordType::A {
            continue;
        }
        for address in known.into_iter().flatten() {
            let data = RData::A((*address).into());
            answer.add_answer(Record::from_rdata(query.name().clone(), 1, data));
        }
    }
    Ok(answer.to_vec()?)
}

fn configure(bed: &Bed) -> Result<()> {
    bed.write_config_of(&format!(
        "[dns]\nservers = [\"{SERVER}\"]\n\
         [[service]]\nname = \"ui\"\nbind = [\"10.91.0.100:8080\"]\n\
         [service.check]\ninterval = \"200ms\"\n\
         [[service.backend]]\nname = \"app\"\naddress = \"app.lb.test:8080\"\n\
         [[service.backend]]\nname = \"nobody\"\naddress = \"nobody.lb.test:8080\"\n"
    ))
}

#[test]
fn a_backend_follows_its_name_and_keeps_its_address_while_nobody_answers() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "native", 2)?;
    let server = Server::start(&bed)?;
    server.set("app.lb.test", &[FIRST])?;
    configure(&bed)?;
    bed.start_controller(&[])?;
    bed.wait_for_state("app", "up")?;
    ensure!(bed.request()? == "mgmt01");
    bed.wait_for_event(
        "nobody.lb.test can't be looked up: there is no such name; its backends have no address yet",
    )?;
    wait_until("it is shown why", || {
        Ok(bed.shown("nobody")?["check"]["detail"] == "nobody.lb.test: there is no such name")
    })?;
    ensure!(bed.shown("nobody")?["state"] == "down");

    // It moves, and its flows stay where they are.
    let mut held = bed.open()?;
    ensure!(held.request()? == "mgmt01");
    server.set("app.lb.test", &[SECOND])?;
    bed.wait_for_event("ui/app is app.lb.test")?;
    wait_until("it has moved", || Ok(bed.request().is_ok_and(|name| name == "mgmt02")))?;
    ensure!(held.request()? == "mgmt01");

    // Another address beside its own is no reason to move, even if it comes first.
    server.set("app.lb.test", &[FIRST, SECOND])?;
    server.set("nobody.lb.test", &[FIRST])?;
    server.wait_until_asked()?;
    bed.wait_for_state("nobody", "up")?;
    let app = bed.shown("app")?;
    ensure!(app["address"] == format!("{SECOND}:8080"), "{app}");
    server.set("nobody.lb.test", &[SECOND])?;
    wait_until("both are one server", || {
        Ok(bed.shown("nobody")?["address"] == format!("{SECOND}:8080"))
    })?;

    // Nobody answers: what is known holds, also through a restart.
    server.zone()?.fails = true;
    bed.wait_for_event("app.lb.test can't be looked up: the server of names says Server Failure; its backends keep")?;
    bed.stop_controller(Signal::SIGKILL)?;
    ensure!(bed.request()? == "mgmt02");
    bed.start_controller(&[])?;
    bed.wait_for_state("app", "up")?;
    ensure!(bed.request()? == "mgmt02" && held.request()? == "mgmt01");
    bed.wait_for_event("app.lb.test can't be looked up: the server of names says Server Failure; its backends keep")?;
    bed.lb_ok(&["reload"])?;
    ensure!(bed.request()? == "mgmt02");

    // And when somebody answers again, that counts.
    {
        let mut zone = server.zone()?;
        zone.addresses.insert("app.lb.test.".to_owned(), vec![FIRST]);
        zone.fails = false;
    }
    bed.wait_for_event("over: app.lb.test")?;
    // The one that it was is still shown, as long as it has flows.
    wait_until("it has moved back", || {
        let backends = bed.json(&["list", "backends", "--json"])?;
        let is_it = |backend: &Value| {
            backend["address"] == format!("{FIRST}:8080") && backend["state"] == "up"
        };
        Ok(backends.as_array().is_some_and(|all| all.iter().any(is_it)))
    })?;

    // Another name that nobody has doesn't inherit the address.
    let text = fs::read_to_string(bed.config())?;
    fs::write(bed.config(), text.replace("app.lb.test", "typo.lb.test"))?;
    bed.lb_ok(&["reload"])?;
    wait_until("it is shown why", || {
        let backends = bed.json(&["list", "backends", "--json"])?;
        let is_it = |backend: &Value| {
            backend["check"]["detail"] == "typo.lb.test: there is no such name"
                && backend["state"] == "down"
        };
        Ok(backends.as_array().is_some_and(|all| all.iter().any(is_it)))
    })?;
    for _ in 0..10 {
        ensure!(bed.request()? == "mgmt02", "the only one whose name is known");
    }
    Ok(())
}
