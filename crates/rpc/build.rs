//! Compiles `proto/understudy/v1` without a `protoc`: protox parses, tonic-prost-build generates.

use std::path::{Path, PathBuf};

use prost::Message;

const FILES: [&str; 5] = ["kv", "cluster", "replication", "mesh", "raft"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked at run time: clones that share a target directory share this program too.
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let paths: Vec<PathBuf> = FILES.iter().map(|file| root.join(format!("understudy/v1/{file}.proto"))).collect();
    println!("cargo:rerun-if-changed={}", root.display());

    let descriptors = protox::compile(&paths, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("understudy.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
