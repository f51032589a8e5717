//! The direction of the crates: `model <- engine <- {connect, sql, lake} <- calve`. Siblings never
//! use each other, not even in tests, and the pure crate uses nothing that does I/O.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Each crate with the crates of the workspace that it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("calve-model", &[]),
    ("calve-engine", &["calve-model"]),
    ("calve-connect", &["calve-model", "calve-engine"]),
    ("calve-sql", &["calve-model", "calve-engine"]),
    ("calve-lake", &["calve-model", "calve-engine"]),
    (
        "calve",
        &[
            "calve-model",
            "calve-engine",
            "calve-connect",
            "calve-sql",
            "calve-lake",
        ],
    ),
    // The end-to-end tests know calve as a user does: by its binary.
    ("calve-e2e", &[]),
];

/// Heavy or impure dependencies, by how their names begin, each with the crates that may use it.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("datafusion", &["calve-sql", "calve"]),
    ("iceberg", &["calve-lake", "calve"]),
    ("sqlx", &["calve-lake"]),
    ("axum", &["calve"]),
    ("clap", &["calve"]),
];

/// What the pure crate may use outside its tests.
const PURE: &[&str] = &["serde"];

fn dependencies() -> BTreeMap<String, Vec<Value>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata failed: {errors}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("a name").to_owned();
            let dependencies = package["dependencies"].as_array().expect("a list");
            (name, dependencies.clone())
        })
        .collect()
}

fn name(dependency: &Value) -> &str {
    dependency["name"].as_str().expect("a dependency's name")
}

#[test]
fn crates_use_only_what_lies_below_them() {
    let found = dependencies();
    let listed: Vec<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    for (package, dependencies) in &found {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| name == package) else {
            panic!("crate {package} is new: give it its place in this test and in ARCHITECTURE.md");
        };
        for dependency in dependencies.iter().map(name) {
            assert!(
                !listed.contains(&dependency) || allowed.contains(&dependency),
                "{package} must not use {dependency}"
            );
        }
    }
    assert_eq!(found.len(), MAY_USE.len(), "a listed crate is gone");
    // The list itself must stay a direction: no crate before the ones that it may use.
    for (at, (package, allowed)) in MAY_USE.iter().enumerate() {
        let below = |name: &&str| listed[..at].contains(name);
        assert!(allowed.iter().all(below), "{package} uses a crate above it");
    }
}

#[test]
fn heavy_dependencies_stay_in_the_crates_that_need_them() {
    for (package, dependencies) in dependencies() {
        for dependency in dependencies.iter().map(name) {
            for (start, allowed) in ONLY_IN {
                assert!(
                    !dependency.starts_with(start) || allowed.contains(&package.as_str()),
                    "{package} must not use {dependency}"
                );
            }
        }
    }
}

#[test]
fn the_model_is_pure() {
    let all = dependencies();
    let used = all["calve-model"]
        .iter()
        .filter(|dependency| dependency["kind"] != "dev");
    for dependency in used.map(name) {
        assert!(
            PURE.contains(&dependency),
            "calve-model must not use {dependency}"
        );
    }
}
