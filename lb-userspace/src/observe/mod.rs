//! What the CLI and the admin pages show, read from the pinned maps.

mod flows;
mod maps;
mod records;
mod status;

pub use flows::{FlowFilter, FlowRecord, flows};
pub use maps::{MapRecord, maps};
pub use records::{
    BackendRecord, CheckRecord, Overview, ReasonRecord, RingRecord, ServiceRecord, reasons,
};
pub use status::Status;
