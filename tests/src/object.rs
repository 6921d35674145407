//! The XDP programs' instructions, as they stand in its object file.

use lb_userspace::dataplane::OBJECT;
use object::{Object, ObjectSection, ObjectSymbol};

/// One BPF instruction (RFC 9669, section 3).
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    opcode: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

/// The register that points to the end of the stack.
const FRAME_POINTER: u8 = 10;

impl Instruction {
    /// Whether it calls a function of the program, rather than one of the kernel.
    pub const fn calls_function(&self) -> bool {
        const CALL: u8 = 0x85;
        const PROGRAM_LOCAL: u8 = 1;
        self.opcode == CALL && self.source == PROGRAM_LOCAL
    }

    /// How far from the end of the stack it reads or writes, in bytes; 0: it doesn't.
    const fn depth(&self) -> u16 {
        // By the instruction's class: LDX reads from where the source points, ST and STX write to the destination.
        let base = match self.opcode & 7 {
            1 => self.source,
            2 | 3 => self.destination,
            _ => return 0,
        };
        if base == FRAME_POINTER { self.offset.unsigned_abs() } else { 0 }
    }
}

/// How much of the stack a program uses, in bytes: how far from its end it reads, writes or takes an address.
///
/// # Panics
///
/// An address isn't taken in the usual two steps.
pub fn stack(program: &[Instruction]) -> u16 {
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let mut most = 0;
    for (index, instruction) in program.iter().enumerate() {
        most = most.max(instruction.depth());
        if instruction.opcode == MOVE && instruction.source == FRAME_POINTER {
            let register = instruction.destination;
            let next = program[index + 1..].iter().find(|next| next.destination == register);
            let next = next.expect("the address is used");
            assert_eq!(next.opcode, ADD, "{next:?} after {instruction:?}");
            let depth = u16::try_from(next.immediate.unsigned_abs()).expect("within the stack");
            most = most.max(depth);
        }
    }
    most
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
    let decode = |bytes: &[u8; 8]| Instruction {
        opcode: bytes[0],
        destination: bytes[1] & 0xf,
        source: bytes[1] >> 4,
        offset: i16::from_le_bytes([bytes[2], bytes[3]]),
        immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
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
