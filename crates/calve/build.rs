//! How the program is linked.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The loader reads a quarter of a million relocations, so they are in memory: packed they take a
    // hundredth of the room.
    if host_is_target() && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

fn host_is_target() -> bool {
    std::env::var("HOST").is_ok_and(|host| {
        host.ends_with("linux-gnu") && std::env::var("TARGET").is_ok_and(|target| target == host)
    })
}

/// The version of this machine's C library. Before 2.36 it does not know packed relocations.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
