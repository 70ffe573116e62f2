//! The example runs.

#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn a_toy_machine_serves_a_page_request() {
    embed::main().unwrap();
}
