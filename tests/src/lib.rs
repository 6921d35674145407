//! What the tests of lb share.
//!
//! * [`frame`] and [`icmp`] build frames, and [`seen`] reads them, with code that shares nothing with the data
//!   path.
//! * [`host`] and [`kernel`] run the same packet logic over in-memory tables and in the kernel, and
//!   [`pair`] demands the same of both; [`world`] is what they are set up with.
//! * [`crowd`] is very many flows, and [`repeat`] measures what one packet costs.
//! * [`object`] reads the program's instructions.
//! * [`bed`] is a network of namespaces with a balancer in it, and [`client`] its clients;
//!   [`capture`] reads what crosses it.
//! * [`modes`] is such a network with every way of forwarding.
//! * [`podman`] runs containers.
//! * [`variant`] is another version of the program under test, and [`rivals`] are what it is compared with.
//! * [`connection`] plays a TCP connection from both ends, and [`random`] makes random frames.

pub mod bed;
pub mod bench;
pub mod capture;
pub mod client;
pub mod connection;
pub mod crowd;
pub mod frame;
pub mod haproxy;
pub mod host;
mod host_frame;
mod host_tables;
pub mod icmp;
pub mod kernel;
mod kernel_counts;
mod kernel_flows;
pub mod many;
pub mod memory;
pub mod modes;
mod nginx;
pub mod object;
pub mod pair;
pub mod pins;
pub mod podman;
pub mod random;
pub mod repeat;
pub mod rivals;
pub mod script;
pub mod seen;
mod settings;
mod traffic;
pub mod variant;
pub mod wait;
pub mod world;
mod world_shortcuts;

pub use settings::setting;
pub use traffic::under_traffic;
