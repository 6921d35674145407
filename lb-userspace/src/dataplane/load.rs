//! Loading the program, with new maps or those that are pinned.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::{
    EbpfError, EbpfLoader,
    maps::{MapData, MapError, ProgramArray},
    pin::PinError,
    programs::{ProgramError, ProgramFd, Xdp},
};
use lb_common::{
    abi::{RING_CHUNK_SLOTS, maps as abi},
    datapath::{Stage, Table},
};

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
    /// Words of all pools of source ports together.
    pub port_words: u32,
    /// Networks in the lists of who may connect, of each family.
    pub networks: u32,
    /// Clients that keep their backends, of each family.
    pub clients: u32,
    /// Sources whose SYNs are counted, of each family.
    pub sources: u32,
}

/// The loaded program and its maps.
pub struct Loaded {
    ebpf: aya::Ebpf,
    /// The maps.
    pub maps: Maps,
    /// Where its stages are pinned.
    stages: PathBuf,
    /// Whether it may be attached somewhere by now.
    in_force: bool,
    /// Stages of programs that were in force before, which a packet may still be on its way through.
    earlier: Vec<MapData>,
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
    demand_maps(pins)?;
    warn_of_missing(pins);
    let mut ebpf = EbpfLoader::new()
        .default_map_pin_directory(pins.directory())
        .map_max_entries(abi::SERVICES, capacity.binds)
        .map_max_entries(abi::SERVICES_IPV6, capacity.binds)
        .map_max_entries(abi::SERVICE_COUNTERS, capacity.services)
        .map_max_entries(abi::SERVICE_INFO, capacity.services)
        .map_max_entries(abi::BACKENDS, capacity.backends)
        .map_max_entries(abi::BACKEND_COUNTERS, capacity.backends)
        .map_max_entries(abi::BACKEND_INFO, capacity.backends)
        .map_max_entries(abi::REFUSALS, capacity.backends)
        .map_max_entries(abi::LOADS, capacity.backends)
        .map_max_entries(abi::SERVICE_LOADS, capacity.services)
        .map_max_entries(abi::NAT_PORTS, capacity.port_words)
        .map_max_entries(abi::ACCESS, capacity.networks)
        .map_max_entries(abi::ACCESS_IPV6, capacity.networks)
        .map_max_entries(abi::CLIENTS, capacity.clients)
        .map_max_entries(abi::CLIENTS_IPV6, capacity.clients)
        .map_max_entries(abi::SOURCES, capacity.sources)
        .map_max_entries(abi::SOURCES_IPV6, capacity.sources)
        .map_max_entries(abi::NAT_SOURCES, capacity.nat_sources)
        .map_max_entries(abi::RINGS, capacity.ring_slots.div_ceil(RING_CHUNK_SLOTS))
        .map_max_entries(abi::FLOWS, capacity.flows.saturating_mul(ENTRIES_A_FLOW))
        .map_max_entries(abi::EMBRYONIC, capacity.embryonic.saturating_mul(ENTRIES_A_FLOW))
        .map_max_entries(abi::FLOWS_IPV6, capacity.flows.saturating_mul(ENTRIES_A_FLOW))
        .map_max_entries(abi::EMBRYONIC_IPV6, capacity.embryonic.saturating_mul(ENTRIES_A_FLOW))
        .load(OBJECT)
        .map_err(|error| load_error(&error))?;
    // Opening the pins checks that reused maps have the layout that the program expects.
    let maps = Maps::open(pins)?;
    let stages = pins.new_stages();
    let loaded = load_stages(&mut ebpf, &stages);
    if let Err(error) = loaded.and_then(|()| load_program(&mut ebpf, PROGRAM).map(drop)) {
        // Perhaps it isn't there.
        let _: std::io::Result<()> = fs::remove_file(&stages);
        return Err(error);
    }
    warn_of_sizes(&maps, capacity);
    Ok(Loaded { ebpf, maps, stages, in_force: false, earlier: Vec::new() })
}

/// Demands that nothing else is where maps are pinned, or are to be.
fn demand_maps(pins: &Pins) -> Result<(), DataplaneError> {
    let wrong = abi::ALL.into_iter().map(|name| pins.map(name)).find(|path| path.is_dir());
    wrong.map_or(Ok(()), |path| Err(DataplaneError::NoMap { path }))
}

/// Says so where some pins of a data plane are gone, since somebody removed them.
fn warn_of_missing(pins: &Pins) {
    let missing = pins.missing();
    if !missing.is_empty() && missing.len() < abi::ALL.len() {
        tracing::error!(
            "pins are gone, and made anew: what they held is lost: {}",
            missing.join(", ")
        );
    }
}

/// Says so where tables that were there already are of another size than they would be made now.
fn warn_of_sizes(maps: &Maps, capacity: &Capacity) {
    let room = |table| maps.ipv4.room(table).map(|entries| entries / ENTRIES_A_FLOW);
    let tables = [
        (room(Table::Established), "limits.flows", capacity.flows),
        (room(Table::Embryonic), "limits.embryonic", capacity.embryonic),
        (maps.ipv4.room_for_clients(), "limits.clients", capacity.clients),
    ];
    for (room, key, wanted) in tables {
        if let Ok(made_for) = room
            && made_for != wanted
        {
            tracing::warn!(
                "{key} is {wanted}, but the table that was taken over was made for {made_for}, and stays as it is until \
                 `lb detach`, which ends all connections"
            );
        }
    }
}

/// Loads the programs that the first one hands frames to, and puts them where it finds them. An earlier version's,
/// which is still attached, goes on with its own. The map is pinned: the kernel lets go of programs in such a map when
/// nobody holds the map but a program.
fn load_stages(ebpf: &mut aya::Ebpf, pin: &Path) -> Result<(), DataplaneError> {
    let missing = || DataplaneError::Load(format!("no map {} in the object", abi::STAGES));
    let map = ebpf.map_mut(abi::STAGES).ok_or_else(missing)?;
    let pinned = |error: PinError| {
        DataplaneError::system(pin.display().to_string())(std::io::Error::other(error))
    };
    map.pin(pin).map_err(pinned)?;
    for stage in Stage::ALL {
        let program = load_program(ebpf, stage_program(stage))?;
        let map = ebpf.map_mut(abi::STAGES).ok_or_else(missing)?;
        ProgramArray::try_from(map)
            .and_then(|mut stages| stages.set(stage as u32, &program, 0))
            .map_err(DataplaneError::map(abi::STAGES))?;
    }
    Ok(())
}

/// The name of a stage's program in the object file.
const fn stage_program(stage: Stage) -> &'static str {
    match stage {
        Stage::Tagged => "lb_tagged",
        Stage::Ipv4 => "lb_ipv4",
        Stage::LookUp => "lb_look_up",
        Stage::LookUpIpv6 => "lb_look_up_ipv6",
        Stage::Fragment => "lb_fragment",
        Stage::FragmentIpv6 => "lb_fragment_ipv6",
        Stage::Options => "lb_options",
        Stage::Open => "lb_open",
        Stage::OpenIpv6 => "lb_open_ipv6",
        Stage::Record => "lb_record",
        Stage::RecordIpv6 => "lb_record_ipv6",
        Stage::Trouble => "lb_trouble",
        Stage::TroubleIpv6 => "lb_trouble_ipv6",
        Stage::Finish => "lb_finish",
        Stage::Ipv6 => "lb_ipv6",
        Stage::Icmp => "lb_icmp",
        Stage::Icmpv6 => "lb_icmpv6",
        Stage::TooBig => "lb_too_big",
        Stage::TooBigIpv6 => "lb_too_big_ipv6",
    }
}

fn load_program(ebpf: &mut aya::Ebpf, name: &str) -> Result<ProgramFd, DataplaneError> {
    let refused = |error: ProgramError| DataplaneError::Load(format!("{name}: {error:#}"));
    let program = xdp(ebpf, name)?;
    program.load().map_err(refused)?;
    let file = program.fd().map_err(refused)?;
    file.try_clone().map_err(DataplaneError::system(name))
}

impl Loaded {
    /// Removes the pins of programs that were in force before, once this one is attached wherever they were. What
    /// they lead to stays until [`Self::forget_earlier`]. By now, nothing depends on them: what can't be removed stays,
    /// with an event.
    pub fn retire_earlier(&mut self, pins: &Pins) {
        for pin in pins.stages() {
            if pin == self.stages {
                continue;
            }
            match MapData::from_pin(&pin) {
                Ok(stages) => self.earlier.push(stages),
                Err(error) => tracing::warn!(%error, pin = %pin.display(), "no part of a program"),
            }
            if let Err(error) = fs::remove_file(&pin) {
                tracing::warn!(%error, pin = %pin.display(), "a pin that is over can't be removed");
            }
        }
    }

    /// Lets go of programs that were in force before. By now, no packet is on its way through them.
    pub fn forget_earlier(&mut self) {
        self.earlier.clear();
    }

    /// How many instructions the verifier looked at in each program, over all its paths. 0: the
    /// kernel doesn't say.
    ///
    /// # Errors
    ///
    /// The kernel can't be asked.
    pub fn verified_instructions(&mut self) -> Result<Vec<u32>, DataplaneError> {
        let names = Stage::ALL.map(stage_program).into_iter().chain([PROGRAM]);
        let verified = |name| {
            let info = xdp(&mut self.ebpf, name)?.info();
            let info = info.map_err(|error| DataplaneError::Load(format!("{name}: {error:#}")))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        names.map(verified).collect()
    }

    /// The first program's number in the kernel; 0 if it isn't told.
    pub fn program_id(&mut self) -> u32 {
        let info = xdp(&mut self.ebpf, PROGRAM).ok().and_then(|program| program.info().ok());
        info.map_or(0, |info| info.id())
    }

    /// The first program, to be attached.
    ///
    /// # Errors
    ///
    /// The object file has none of the name.
    pub fn program(&mut self) -> Result<&mut Xdp, DataplaneError> {
        self.in_force = true;
        xdp(&mut self.ebpf, PROGRAM)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if !self.in_force
            && let Err(error) = fs::remove_file(&self.stages)
        {
            tracing::warn!(%error, pin = %self.stages.display(), "removing a pin");
        }
    }
}

fn xdp<'a>(ebpf: &'a mut aya::Ebpf, name: &str) -> Result<&'a mut Xdp, DataplaneError> {
    ebpf.program_mut(name)
        .ok_or_else(|| DataplaneError::Load(format!("no program {name:?} in the object")))?
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
