//! placeholder
use lb_tests::{frame::Tcp, host::Host, kernel::Kernel, world::*};
#[test]
fn smoke() {
    let world = World::default();
    let host = Host::new(&world);
    let mut kernel = Kernel::new(&world).unwrap();
    let frame = Tcp::syn(CLIENT, VIP).build();
    let a = host.run(&frame);
    let b = kernel.run(&frame, a.reason).unwrap();
    assert_eq!(a, b);
}
