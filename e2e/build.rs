//! Compiles the protocol of token transfers for the server of the tests.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = Path::new("../crates/connect/proto");
    println!("cargo:rerun-if-changed={}", protos.display());
    let set = protox::compile([protos.join("event_service.proto")], [protos])?;
    let out = std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?;
    let bytes = prost_types::FileDescriptorSet::clone(&set);
    std::fs::write(
        Path::new(&out).join("transfers.binpb"),
        prost::Message::encode_to_vec(&bytes),
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_fds(set)?;
    Ok(())
}
