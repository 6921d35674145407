//! Copies of `lb`, and another version of it, whose XDP program differs.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use lb_userspace::dataplane::OBJECT;
use object::{Object, ObjectSection, ObjectSymbol};

/// Opcodes of jumps that compare two registers for equality or inequality, as 64 and as 32 bits (RFC 9669, section
/// 4.3): whichever of them comes first, they mean the same.
const SYMMETRIC_JUMPS: [u8; 4] = [0x1d, 0x5d, 0x1e, 0x5e];

/// Copies a program, so that it can be started at once. Another process does it: a file that this one has open to write,
/// children of its other threads have too until they start their programs, and so long the kernel starts none from it.
///
/// # Errors
///
/// It can't be copied.
pub fn copy(program: &str, to: &Path) -> Result<()> {
    let output = Command::new("cp").arg(program).arg(to).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Copies a program, with two registers changed about in the first such jump of its first XDP program: that does the
/// same, and is another one to the kernel.
///
/// # Errors
///
/// The program has no such object in it, or that has no such jump.
pub fn write(lb: &Path, to: &Path) -> Result<()> {
    let mut bytes = fs::read(lb)?;
    let place = bytes.windows(OBJECT.len()).position(|window| window == OBJECT);
    let place = place.context("no object in it")?;
    let file = object::File::parse(OBJECT)?;
    let section = file.section_by_name("xdp").context("the programs' section")?;
    let (start, _) = section.file_range().context("its place")?;
    let program = file.symbol_by_name("lb").context("the first program")?;
    let (instructions, _) = section.data()?.as_chunks::<8>();
    let first = program.address() as usize / 8;
    let instructions = &instructions[first..first + program.size() as usize / 8];
    let is_jump = |instruction: &&[u8; 8]| {
        SYMMETRIC_JUMPS.contains(&instruction[0]) && instruction[1] >> 4 != instruction[1] & 0xf
    };
    let number = instructions.iter().position(|instruction| is_jump(&instruction));
    let number = number.context("no such jump")?;
    let at = place + start as usize + (first + number) * 8 + 1;
    ensure!(bytes[at] == instructions[number][1]);
    bytes[at] = bytes[at].rotate_left(4);
    fs::write(to, bytes)?;
    fs::set_permissions(to, fs::metadata(lb)?.permissions())?;
    Ok(())
}
