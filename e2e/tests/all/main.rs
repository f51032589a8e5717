//! The end-to-end tests, a module each: one program, so that there is one link, and so that those that
//! wait leave the processors to others. Many run at the same time: a test has its own folder and ports,
//! and is right however long something takes. `cargo test … -p calve-e2e --test all windows::` runs one module.

mod batchers;
mod changes;
mod changes_from_debezium;
mod changes_golden;
mod changes_log;
mod changes_on_rest;
mod changes_on_s3;
mod changes_renamed;
mod cli;
mod clouds;
mod crash;
mod direction;
mod docs;
mod evolution;
mod flow;
mod followed;
mod http;
mod layouts;
mod memory;
mod object_store;
mod orders;
mod paper;
mod refusals;
mod replaced_panes;
mod rest_catalog;
mod settled;
mod shared_table;
mod sql_catalog;
mod sql_checkpoints;
mod stall;
mod start;
mod terminal;
mod transfers;
mod transfers_failures;
mod transfers_refused;
mod upkeep;
mod windows;

/// A file without its line above would be compiled by nobody.
#[test]
fn every_file_is_a_module() {
    let main = include_str!("main.rs");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all");
    for entry in std::fs::read_dir(folder).expect("the folder of this file") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy();
        let is_file_of_tests = path.extension().is_some_and(|e| e == "rs") && name != "main";
        let line = format!("\nmod {name};\n");
        assert!(!is_file_of_tests || main.contains(&line), "mod {name};");
    }
}
