//! Loading the program, with new maps or those that are pinned.

use aya::{
    EbpfError, EbpfLoader,
    maps::MapError,
    programs::{ProgramError, Xdp},
};
use lb_common::abi::{RING_CHUNK_SLOTS, maps};

use super::{DataplaneError, Maps, Pins};

/// The XDP program's object file.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_EBPF_OBJECT"));

/// How many entries the maps are made for. Pinned maps keep the sizes they were made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Established connections.
    pub flows: u32,
    /// Half-open handshakes.
    pub embryonic: u32,
    /// Services.
    pub services: u32,
    /// Addresses, ports and protocols that services are bound to.
    pub binds: u32,
    /// Backends.
    pub backends: u32,
    /// Slots of all rings together.
    pub ring_slots: u32,
    /// Addresses that full NAT sends from.
    pub nat_sources: u32,
}

/// The loaded program and its maps.
pub struct Loaded {
    ebpf: aya::Ebpf,
    /// The maps.
    pub maps: Maps,
}

const PROGRAM: &str = "lb";
/// Entries that one flow takes: one for each direction.
const ENTRIES_A_FLOW: u32 = 2;

/// Loads the program. Pinned maps are taken over with all they hold; missing ones are made.
///
/// # Errors
///
/// The user may not, there is no BPF file system, pinned maps are of another layout, or the kernel
/// refuses the program.
pub fn load(pins: &Pins, capacity: &Capacity) -> Result<Loaded, DataplaneError> {
    pins.create()?;
    let mut ebpf = EbpfLoader::new()
        .default_map_pin_directory(pins.directory())
        .map_max_entries(maps::SERVICES, capacity.binds)
        .map_max_entries(maps::SERVICE_COUNTERS, capacity.services)
        .map_max_entries(maps::SERVICE_INFO, capacity.services)
        .map_max_entries(maps::BACKENDS, capacity.backends)
        .map_max_entries(maps::BACKEND_COUNTERS, capacity.backends)
        .map_max_entries(maps::BACKEND_INFO, capacity.backends)
        .map_max_entries(maps::NAT_CURSORS, capacity.backends)
        .map_max_entries(maps::NAT_SOURCES, capacity.nat_sources)
        .map_max_entries(maps::RINGS, capacity.ring_slots.div_ceil(RING_CHUNK_SLOTS))
        .map_max_entries(maps::FLOWS, capacity.flows.saturating_mul(ENTRIES_A_FLOW))
        .map_max_entries(maps::EMBRYONIC, capacity.embryonic.saturating_mul(ENTRIES_A_FLOW))
        .load(OBJECT)
        .map_err(|error| load_error(&error))?;
    // Opening the pins checks that reused maps have the layout that the program expects.
    let maps = Maps::open(pins)?;
    let program = xdp(&mut ebpf)?;
    program.load().map_err(|error| DataplaneError::Load(format!("{error:#}")))?;
    Ok(Loaded { ebpf, maps })
}

impl Loaded {
    /// The program.
    ///
    /// # Errors
    ///
    /// The object file has none of the name.
    pub fn program(&mut self) -> Result<&mut Xdp, DataplaneError> {
        xdp(&mut self.ebpf)
    }
}

fn xdp(ebpf: &mut aya::Ebpf) -> Result<&mut Xdp, DataplaneError> {
    ebpf.program_mut(PROGRAM)
        .ok_or_else(|| DataplaneError::Load(format!("no program {PROGRAM:?} in the object")))?
        .try_into()
        .map_err(|error: ProgramError| DataplaneError::Load(error.to_string()))
}

fn load_error(error: &EbpfError) -> DataplaneError {
    let denied = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error, .. }) if denied(io_error) => {
            DataplaneError::Permission { what: format!("creating map {name}") }
        }
        EbpfError::MapError(MapError::CreateError { name, io_error, .. }) => {
            DataplaneError::Load(format!("creating map {name}: {io_error}"))
        }
        _ => DataplaneError::Load(format!("{error:#}")),
    }
}
