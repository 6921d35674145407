//! The XDP programs' instructions, as they stand in its object file.

use lb_userspace::dataplane::OBJECT;
use object::{Object, ObjectSection, ObjectSymbol};

/// One BPF instruction (RFC 9669, section 3).
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    opcode: u8,
    source: u8,
}

impl Instruction {
    /// Whether it calls a function of the program, rather than one of the kernel.
    pub const fn calls_function(&self) -> bool {
        const CALL: u8 = 0x85;
        const PROGRAM_LOCAL: u8 = 1;
        self.opcode == CALL && self.source == PROGRAM_LOCAL
    }
}

/// The programs that the kernel runs, by name, and the instructions of each.
///
/// # Panics
///
/// The object file isn't one, or has no such section.
pub fn programs() -> Vec<(String, Vec<Instruction>)> {
    let file = object::File::parse(OBJECT).expect("an object file");
    let section = file.section_by_name("xdp").expect("the programs' section");
    let bytes = section.data().expect("its bytes");
    let decode = |bytes: &[u8; 8]| Instruction { opcode: bytes[0], source: bytes[1] >> 4 };
    let symbols = file.symbols().filter(|symbol| symbol.section_index() == Some(section.index()));
    let program = |symbol: object::Symbol<'_, '_>| {
        let start = symbol.address() as usize;
        let (instructions, rest) = bytes[start..start + symbol.size() as usize].as_chunks::<8>();
        assert!(rest.is_empty(), "half an instruction");
        let name = symbol.name().expect("UTF-8").to_owned();
        (name, instructions.iter().map(decode).collect())
    };
    symbols.filter(ObjectSymbol::is_global).map(program).collect()
}
