//! Traffic that real programs sent, through the host's build and the loaded program.
//!
//! `fixtures/lab.pcap` is what crossed the client's interface of the lab: requests by curl with and
//! without keep-alive, an upload, a reset, ping with and without fragments, UDP with and without, ports
//! where nobody listens, ARP and neighbour discovery.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lb_common::datapath::{Action, Reason};
use lb_tests::{
    pair::{Pair, check_transmitted},
    world::{OWN_MAC, VIP, World},
};

const CAPTURE: &[u8] = include_bytes!("../fixtures/lab.pcap");

/// The frames of a capture file (draft-ietf-opsawg-pcap) of this machine's byte order.
fn frames(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    let word = |bytes: &[u8], at: usize| -> Result<u32> {
        let bytes = bytes.get(at..at + 4).context("cut off")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    ensure!(word(file, 0)? == MAGIC, "no capture file");
    let mut rest = file.get(24..).context("cut off")?;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let length = word(rest, 8)? as usize;
        frames.push(rest.get(16..16 + length).context("cut off")?.to_vec());
        rest = &rest[16 + length..];
    }
    Ok(frames)
}

/// Whether a frame is from the client to the service, or a later part of such a datagram.
fn is_for_the_service(frame: &[u8]) -> bool {
    const CLIENT: [u8; 4] = [10, 77, 0, 1];
    const SERVICE: [u8; 4] = [10, 77, 0, 100];
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if word(12) != 0x0800 || frame[26..30] != CLIENT || frame[30..34] != SERVICE {
        return false;
    }
    let is_later = word(20) & 0x1fff != 0;
    let transport = 14 + usize::from(frame[14] & 0xf) * 4;
    match frame[23] {
        UDP if is_later => true,
        TCP | UDP => word(transport + 2) == VIP.1,
        _ => false,
    }
}

#[test]
fn what_real_programs_send_is_forwarded_or_passed_as_it_is() -> Result<()> {
    let mut pair = Pair::new(&World::default())?;
    let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
    for (number, mut frame) in (1..).zip(frames(CAPTURE)?) {
        let is_to_a_group = frame[0] & 1 != 0;
        if !is_to_a_group {
            frame[..6].copy_from_slice(&OWN_MAC);
        }
        let what = format!("frame {number}");
        let outcome = pair.run(&frame).with_context(|| what.clone())?;
        check_transmitted(&pair.host.world, &frame, &outcome).with_context(|| what.clone())?;
        let wanted = if is_for_the_service(&frame) { Action::Transmit } else { Action::Pass };
        ensure!(outcome.action == wanted, "{what}: {:?}", outcome.reason);
        *reasons.entry(outcome.reason).or_default() += 1;
    }
    println!("{reasons:?}");
    let all = [
        Reason::Opened,
        Reason::ToBackend,
        Reason::Fragment,
        Reason::NotIp,
        Reason::OtherProtocol,
        Reason::LaterFragment,
        Reason::NoService,
    ];
    ensure!(reasons.keys().eq(&all), "{reasons:?}");
    pair.compare_tables()
}
