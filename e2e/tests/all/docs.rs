//! What the documentation says is true: the README's commands run, the examples pass `check`, the JSON
//! Schema describes them, and every key of it is in docs/pipeline-file.md.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use calve_e2e::calve;
use serde_json::Value;

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("the workspace").to_owned()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).expect("a file of the project")
}

fn python() -> String {
    std::env::var("CALVE_PYTHON").expect("CALVE_PYTHON: run the tests by `make test`")
}

/// Fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks
        .map(|block| block.split("```").next().expect("a first part").to_owned())
        .collect()
}

fn schema() -> Value {
    let done = Command::new(calve()).arg("schema").output().expect("run");
    assert!(done.status.success() && done.stderr.is_empty());
    serde_json::from_slice(&done.stdout).expect("the schema is JSON")
}

fn examples() -> Vec<PathBuf> {
    let folders = ["examples", "examples/paper"];
    let entries = |folder| fs::read_dir(root().join(folder)).expect("a folder");
    let mut paths: Vec<PathBuf> = folders
        .into_iter()
        .flat_map(entries)
        .map(|e| e.expect("an entry").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    paths.sort();
    assert!(paths.len() >= 3);
    paths
}

fn well(done: &Output, what: &str) {
    assert!(
        done.status.success(),
        "{what}: {} {}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A folder as the README takes it for granted: the examples and some events. The server takes any
/// free port, since tests run side by side.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a folder");
    fs::create_dir(place.path().join("examples")).expect("a folder");
    fs::create_dir(place.path().join("data")).expect("a folder");
    for path in examples() {
        let text = fs::read_to_string(&path).expect("an example");
        let name = path.file_name().expect("a name");
        fs::write(
            place.path().join("examples").join(name),
            text.replace("127.0.0.1:8088", "127.0.0.1:0"),
        )
        .expect("write");
    }
    let event = r#"{"ts":1767225600,"user_id":1,"region":"eu","amount":9.5,"sku":"a"}"#;
    fs::write(
        place.path().join("data/a.ndjson"),
        format!("{event}\n{event}\n"),
    )
    .expect("write");
    place
}

#[test]
fn the_readme_s_commands_run() {
    let readme = read("README.md");
    let place = place();
    let bin = calve().parent().expect("a folder").display().to_string();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
    let mut ran = 0;
    for block in blocks(&readme, "sh") {
        for line in block.lines().filter(|line| !line.trim().is_empty()) {
            let command = line.split('#').next().expect("a first part").trim();
            // This test runs within it: only that make knows it.
            let done = if command == "make test" {
                let mut make = Command::new("make");
                make.args(["-n", "test"]).current_dir(root()).output()
            } else {
                // From the build that is tested, and shortened.
                let command = command.replace("cargo run --release -- ", "calve ");
                let command = command.replace("calve demo", "calve demo --seconds 1");
                let mut shell = Command::new("sh");
                shell.args(["-euc", command.as_str()]);
                let shell = shell.env("PATH", &path).current_dir(place.path());
                shell.output()
            };
            well(&done.expect("start it"), line);
            ran += 1;
        }
    }
    assert!(ran >= 5, "the README's commands were found: {ran}");
    let scripts = blocks(&readme, "python");
    assert_eq!(scripts.len(), 1);
    let done = Command::new(python())
        .args(["-c", &scripts[0]])
        .current_dir(place.path())
        .output();
    let done = done.expect("run Python");
    well(&done, "the README's Python");
    assert!(String::from_utf8_lossy(&done.stdout).contains("region"));
}

#[test]
fn examples_pass_check() {
    for example in examples() {
        let done = Command::new(calve()).arg("check").arg(&example).output();
        well(&done.expect("run calve"), &example.display().to_string());
    }
}

#[test]
fn the_schema_is_valid_and_describes_the_examples() {
    const VALIDATE: &str = "
import json, sys, jsonschema
schema, files = json.load(sys.stdin)
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
print(json.dumps([[e.message[:300] for e in validator.iter_errors(f)] for f in files]))
";
    let mut files: Vec<Value> = Vec::new();
    for example in examples() {
        let text = fs::read_to_string(example).expect("an example");
        files.push(serde_yaml_ng::from_str(&text).expect("YAML"));
    }
    for kind in ["iceberg", "parquet", "generator", "http", "csv"] {
        let done = Command::new(calve()).args(["init", kind]).output();
        let done = done.expect("run calve");
        files.push(serde_yaml_ng::from_slice(&done.stdout).expect("YAML"));
    }
    let good = files.len();
    // It must be able to say no.
    for (key, value) in [
        ("comit", "{}"),
        ("name", "7"),
        ("source", "{ \"fill\": {} }"),
    ] {
        let mut wrong = files[0].clone();
        wrong[key] = serde_json::from_str(value).expect("JSON");
        files.push(wrong);
    }
    let input = tempfile::NamedTempFile::new().expect("a file");
    serde_json::to_writer(&input, &(schema(), &files)).expect("write");
    let done = Command::new(python())
        .args(["-c", VALIDATE])
        .stdin(fs::File::open(input.path()).expect("open"))
        .output()
        .expect("run Python");
    well(&done, "validate");
    let errors: Vec<Vec<String>> = serde_json::from_slice(&done.stdout).expect("JSON");
    for (index, errors) in errors.iter().enumerate() {
        assert_eq!(errors.is_empty(), index < good, "file {index}: {errors:?}");
    }
}

/// Names of all keys below a JSON Schema, wherever they are.
fn keys(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    // Here names are the pipeline file's, not the schema's.
                    Value::Object(properties) if name == "properties" => {
                        found.extend(properties.keys().cloned());
                        properties.values().for_each(|value| keys(value, found));
                    }
                    _ => keys(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn every_key_is_in_the_documentation() {
    let docs = read("docs/pipeline-file.md");
    let words: BTreeSet<&str> = docs
        .split('`')
        .skip(1)
        .step_by(2)
        .flat_map(|code| code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')))
        .chain(docs.lines().filter_map(|line| line.strip_prefix("## ")))
        .chain(docs.lines().filter_map(|line| line.strip_prefix("### ")))
        .collect();
    let mut found = BTreeSet::new();
    keys(&schema(), &mut found);
    assert!(found.len() > 40, "{found:?}");
    let missing: Vec<_> = found
        .iter()
        .filter(|k| !words.contains(k.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "not in docs/pipeline-file.md: {missing:?}"
    );
}
