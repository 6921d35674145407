//! Where a backend is: at an address or a name.

use super::{VALID, check};

#[test]
fn a_backend_may_have_a_name() {
    let text = VALID.replace("192.0.2.101:8080", "Mgmt_01.example.com.:8080");
    let (status, error) =
        check(&text.replace("[[service]]", "[dns]\nservers = [\"::1\"]\n[[service]]"));
    assert_eq!(status, Some(0), "{error}");
    // Two names may be one machine, but one name is one backend.
    let twice = text.replace("192.0.2.102:8080", "Mgmt_01.example.com.:8080");
    let (status, error) = check(&twice);
    assert_eq!(status, Some(2));
    assert!(error.contains("Mgmt_01.example.com.:8080 is given twice"), "{error}");
    // Ports aren't translated by direct return, whoever says where the backend is.
    let direct = text.replace("[service.check]", "forwarding = \"dsr\"\n[service.check]");
    let (status, error) = check(&direct.replace("example.com.:8080", "example.com:8081"));
    assert_eq!(status, Some(2));
    assert!(error.contains("port 8081 of the backend differs"), "{error}");
}

#[test]
fn a_backend_at_a_services_address() {
    let (status, error) = check(&VALID.replace("192.0.2.102:8080", "192.0.2.100:9090"));
    assert_eq!(status, Some(2));
    assert!(
        error.contains("192.0.2.100 is an address of service \"cloudstack-ui\", and no server's"),
        "{error}"
    );
}
