//! Health checks beside HAProxy's: the scenarios of its own tests (reg-tests/checks) are played to both, and after each
//! check both must say the same of the backend.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    bed::{Bed, SERVICE},
    haproxy::Haproxy,
    script::{
        Answer::{self, Greets, Resets, Says, Stalls},
        Scripted,
    },
    wait::wait_until,
};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

const OK: Answer = Says("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Node: one\r\n\r\nready\n");
const FOUND: Answer = Says("HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n");
const MISSING: Answer = Says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
const BROKEN: Answer = Says("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
const BUSY: Answer = Says("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");

/// What is played, and how each is told what to make of it.
struct Scenario {
    name: &'static str,
    /// Lines of HAProxy's `backend`.
    haproxy: &'static str,
    /// Words of HAProxy's `server`, with PORT for the server that plays.
    server: &'static str,
    /// Keys of `[service.check]`, likewise.
    lb: &'static str,
    /// One for each check.
    answers: &'static [Answer],
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "statuses",
        haproxy: "option httpchk GET /client/",
        server: "rise 2 fall 3",
        lb: "rise = 2\nfall = 3",
        answers: &[
            OK, BROKEN, BROKEN, OK, BROKEN, MISSING, BUSY, OK, BROKEN, OK, FOUND, OK, BROKEN,
            BROKEN, BROKEN, OK, OK,
        ],
    },
    Scenario {
        name: "one failure, three passes",
        haproxy: "option httpchk GET /client/",
        server: "rise 3 fall 1",
        lb: "rise = 3\nfall = 1",
        answers: &[BROKEN, OK, OK, BROKEN, OK, OK, OK, OK, BROKEN, OK],
    },
    Scenario {
        name: "disable-on-404",
        haproxy: "option httpchk GET /client/\n http-check disable-on-404",
        server: "rise 2 fall 3",
        lb: "rise = 2\nfall = 3\ndrain_on = \"404\"",
        answers: &[
            OK, MISSING, MISSING, OK, BROKEN, MISSING, BROKEN, BROKEN, MISSING, OK, MISSING,
            BROKEN, BROKEN, BROKEN, MISSING, OK, OK, MISSING, BROKEN, BROKEN, BROKEN, OK, MISSING,
            OK, OK,
        ],
    },
    Scenario {
        name: "expect statuses",
        haproxy: "option httpchk GET /client/\n http-check expect status 200-299,404",
        server: "rise 1 fall 1",
        lb: "rise = 1\nfall = 1\nexpect = \"200-299,404\"",
        answers: &[OK, FOUND, MISSING, BROKEN, OK, BUSY],
    },
    Scenario {
        name: "expect in the body",
        haproxy: "option httpchk GET /client/\n http-check expect rstring ^read[xy]$|^ready",
        server: "rise 1 fall 1",
        lb: "rise = 1\nfall = 1\nexpect = \"100-599\"\nexpect_body = \"^read[xy]$|^ready\"",
        answers: &[
            OK,
            Says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot ready"),
            OK,
            Says("HTTP/1.1 200 OK\r\n\r\n"),
            Says(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n",
            ),
        ],
    },
    Scenario {
        name: "expect a header",
        haproxy: "option httpchk GET /client/\n http-check expect hdr name X-Node value -m reg ^one|two",
        server: "rise 1 fall 1",
        lb: "rise = 1\nfall = 1\nexpect = \"100-599\"\nexpect_header = \"x-node: ^one|two\"",
        answers: &[
            OK,
            BROKEN,
            Says("HTTP/1.1 500 Oh\r\nX-Node: is two\r\nContent-Length: 0\r\n\r\n"),
            Says("HTTP/1.1 200 OK\r\nX-Node: is one\r\nContent-Length: 0\r\n\r\n"),
        ],
    },
    Scenario {
        name: "no answers",
        haproxy: "option httpchk GET /client/",
        server: "rise 1 fall 2",
        lb: "rise = 1\nfall = 2",
        answers: &[
            OK,
            Says(""),
            OK,
            Says("nonsense\r\n\r\n"),
            Resets(""),
            OK,
            Says("HTTP/1.1 200 "),
            Resets("HTTP/1.1 2"),
            OK,
        ],
    },
    Scenario {
        name: "too slow",
        haproxy: "option httpchk GET /client/\n timeout check 500ms",
        server: "rise 1 fall 2",
        lb: "rise = 1\nfall = 2\ntimeout = \"500ms\"",
        answers: &[OK, Stalls(""), OK, Stalls("HTTP/1.1 200 OK\r\nX-"), Stalls(""), OK],
    },
    Scenario {
        name: "tcp, with something to say",
        haproxy: "option tcp-check\n tcp-check send PING\\r\\n\n tcp-check expect rstring ^\\+PONG",
        server: "rise 2 fall 2",
        lb: "type = \"tcp\"\nsend = \"PING\\r\\n\"\nexpect = '^\\+PONG'\nrise = 2\nfall = 2",
        answers: &[
            Says("+PONG\r\n"),
            Says("-BUSY\r\n"),
            Says("+PONG\r\n"),
            Says("-BUSY\r\n"),
            Says(""),
            Says("+PONG\r\n"),
            Says("+PONG\r\n"),
        ],
    },
    Scenario {
        name: "tcp, greeted",
        haproxy: "option tcp-check\n tcp-check expect string 220",
        server: "rise 1 fall 1",
        lb: "type = \"tcp\"\nexpect = \"220\"\nrise = 1\nfall = 1",
        answers: &[Greets("220 here\r\n"), Greets("421 away\r\n"), Greets("220 again\r\n")],
    },
    Scenario {
        name: "a port of its own",
        haproxy: "option httpchk GET /client/",
        server: "port PORT rise 1 fall 1",
        lb: "port = PORT\nrise = 1\nfall = 1",
        answers: &[OK, BROKEN, OK],
    },
    Scenario {
        name: "an agent",
        haproxy: "",
        server: "agent-check agent-port PORT agent-inter 50ms",
        lb: "type = \"tcp\"\nagent_port = PORT\nagent_interval = \"50ms\"",
        answers: &[
            Greets("up\n"),
            Greets("50%\n"),
            Greets("down # for lunch\n"),
            Greets("\n"),
            Greets("up 25%\n"),
            Greets("drain\n"),
            Greets("up\n"),
            Greets("ready\n"),
            Greets("maint\n"),
            Greets("100%\n"),
            Greets("ready\r\n"),
            Greets("stopped\n"),
            Greets("nonsense 1%\n"),
            Greets("up ready 200%\n"),
            Greets("failed"),
            Greets("UP,ready\t100%\n"),
        ],
    },
];

/// Where something listens that is always well.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 91, 0, 101)), 8080);

/// What HAProxy says after each check of a scenario.
fn play_to_haproxy(bed: &Bed, scenario: &Scenario, port: u16) -> Result<Vec<(&'static str, u64)>> {
    let playing = SocketAddr::from(([10, 91, 0, 101], port));
    let server = Scripted::start(bed.backend_namespace("mgmt01")?, playing)?;
    let words = scenario.server.replace("PORT", &port.to_string());
    let checked = if words == scenario.server { playing } else { ELSEWHERE };
    let backend =
        format!("{}\n server s {checked} check weight 100 inter 50ms {words}", scenario.haproxy);
    let haproxy = Haproxy::start(bed, &backend)?;
    let mut states = Vec::new();
    server.wait()?;
    for answer in scenario.answers {
        server.answer(*answer)?;
        // It has made up its mind before it asks again.
        server.wait()?;
        states.push(haproxy.state()?);
    }
    Ok(states)
}

/// Demands that the balancer says the same.
fn play_to_lb(
    bed: &mut Bed,
    scenario: &Scenario,
    port: u16,
    states: &[(&'static str, u64)],
) -> Result<()> {
    let playing = SocketAddr::from(([10, 91, 0, 101], port));
    let server = Scripted::start(bed.backend_namespace("mgmt01")?, playing)?;
    let keys = scenario.lb.replace("PORT", &port.to_string());
    let checked = if keys == scenario.lb { playing } else { ELSEWHERE };
    let timeout = if keys.contains("timeout") { "" } else { "timeout = \"5s\"" };
    bed.write_config_of(&format!(
        "[[service]]\nname = \"ui\"\nbind = [\"{SERVICE}\"]\n[service.check]\ninterval = \"50ms\"\n{timeout}\n\
         {keys}\n[[service.backend]]\nname = \"s\"\naddress = \"{checked}\"\nweight = 100\n",
    ))?;
    bed.start_controller(&[])?;
    server.wait()?;
    for (number, (answer, (state, weight))) in scenario.answers.iter().zip(states).enumerate() {
        server.answer(*answer)?;
        server.wait()?;
        let what = format!("{}, {}. check ({answer:?}): {state}", scenario.name, number + 1);
        // Until it has told the maps.
        wait_until(&what, || {
            let shown = bed.shown("s")?;
            // HAProxy shows the weight of one in maintenance as it was before.
            Ok(shown["state"] == *state && (*state == "maint" || shown["weight"] == *weight))
        })
        .with_context(|| format!("{:?}", bed.shown("s")))?;
    }
    bed.stop_controller(Signal::SIGTERM)?;
    bed.lb_ok(&["detach"]).map(drop)
}

#[test]
fn checks_come_to_the_same_as_haproxys() -> Result<()> {
    let mut bed = Bed::without_controller(LB, "generic", 1)?;
    for (number, scenario) in (0..).zip(SCENARIOS) {
        let states = play_to_haproxy(&bed, scenario, 9000 + 2 * number)?;
        println!("{}: {states:?}", scenario.name);
        let has = |wanted: &str| states.iter().any(|(state, _)| *state == wanted);
        ensure!(has("up") && has("down"), "{}: {states:?}", scenario.name);
        play_to_lb(&mut bed, scenario, 9001 + 2 * number, &states)?;
    }
    Ok(())
}
