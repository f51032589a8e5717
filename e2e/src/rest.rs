//! Pipelines into an Iceberg table of a REST catalog, with its files in S3, and independent readers of
//! it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
};

use serde_json::{Value, json};

use crate::{
    py,
    s3::{KEY, S3, SECRET, command},
};

/// A pipeline into the table `<name>.orders` of the warehouse `s3://ice`; checkpoints and rejects lie
/// below `s3://data/<name>`.
pub struct OnRest {
    /// Where the pipeline file and the log are.
    pub dir: PathBuf,
    /// The namespace.
    pub name: String,
    stores: String,
}

/// Who calve is to the catalog: by OAuth2, or by signed requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Client credentials.
    OAuth,
    /// Signature Version 4.
    Signed,
}

impl Who {
    fn settings(self) -> String {
        match self {
            Self::OAuth => format!("credential: \"{KEY}:${{S3_SECRET}}\""),
            Self::Signed => format!(
                "sigv4: {{ region: us-east-1, service: s3, access_key_id: {KEY}, \
                 secret_access_key: \"${{S3_SECRET}}\" }}"
            ),
        }
    }
}

impl OnRest {
    /// With a source and further lines of the pipeline file; the catalog is at `port`.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn new(
        server: &S3,
        dir: &Path,
        name: &str,
        (port, who): (u16, Who),
        (source, table, more): (&str, &str, &str),
    ) -> Self {
        let stores = format!("{}  \"s3://ice\": {}\n", server.stores(), server.store());
        let this = Self {
            dir: dir.join(name),
            name: name.to_owned(),
            stores,
        };
        fs::create_dir_all(&this.dir).expect("a folder");
        this.write((port, who), (source, table, more));
        this
    }

    /// The same with other lines of `stores`.
    ///
    /// # Panics
    /// When the pipeline file cannot be written.
    #[must_use]
    pub fn with_stores(mut self, stores: String) -> Self {
        let text = fs::read_to_string(self.file()).expect("the pipeline file");
        fs::write(self.file(), text.replace(&self.stores, &stores)).expect("the pipeline file");
        self.stores = stores;
        self
    }

    /// Writes the pipeline file again.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, (port, who): (u16, Who), (source, table, more): (&str, &str, &str)) {
        let rest = format!(
            "{{ rest: {{ uri: \"http://127.0.0.1:{port}\", warehouse: \"s3://ice\", {} }} }}",
            who.settings()
        );
        self.write_with(&rest, (source, table, more));
    }

    /// The same with another catalog.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_with(&self, catalog: &str, (source, table, more): (&str, &str, &str)) {
        let name = &self.name;
        let text = format!(
            "name: orders\nsource: {source}\n\
             sink: {{ iceberg: {{ catalog: {catalog}, table: {name}.orders{table} }} }}\n\
             checkpoint: {{ path: \"s3://data/{name}/checkpoints\" }}\n\
             rejects: {{ path: \"s3://data/{name}/rejects\" }}\n{more}\n{}",
            self.stores
        );
        fs::write(self.file(), text).expect("write the pipeline file");
    }

    /// The pipeline file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("orders.yaml")
    }

    /// The table's name.
    pub fn table(&self) -> String {
        format!("{}.orders", self.name)
    }

    /// `calve run`, with `CALVE_FAULT` set to `fault` unless empty.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn start(&self, fault: &str) -> Child {
        crate::start(command(), &self.dir, &self.file(), fault, &[])
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn run(&self, fault: &str) -> ExitStatus {
        self.start(fault).wait().expect("wait for calve")
    }

    /// `calve table WHAT …` of the table, with more arguments before its name.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn table_command(&self, args: &[&str]) -> Output {
        let mut all = vec!["table", args[0], "--file", "FILE"];
        let table = self.table();
        all.extend(&args[1..]);
        all.push(&table);
        self.command(&all)
    }

    /// Any command; `FILE` stands for the pipeline file.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn command(&self, args: &[&str]) -> Output {
        let file = self.file().display().to_string();
        let args = args
            .iter()
            .map(|arg| if *arg == "FILE" { file.as_str() } else { *arg });
        command().args(args).output().expect("run calve")
    }

    /// What it said on stderr so far.
    ///
    /// # Panics
    /// When a secret is in it.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        assert!(!log.contains("SEEN"), "a secret is in the log: {log}");
        log
    }
}

/// What PyIceberg and DuckDB find in `<name>.orders`, for each name; rows with a negative id are another
/// writer's and do not count.
///
/// # Panics
/// When a reader fails, or the two disagree.
pub fn found(server: &S3, names: &[&str]) -> Vec<Value> {
    let answer = ask(server, &json!({ "do": "summary", "names": names }));
    answer.as_array().expect("a list").clone()
}

/// What `py/rest.py` answers.
///
/// # Panics
/// When it fails.
pub fn ask(server: &S3, what: &Value) -> Value {
    let done = py::run("rest.py", &arguments(server, what));
    assert!(
        done.status.success(),
        "py/rest.py: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    serde_json::from_slice(&done.stdout).expect("JSON")
}

/// `py/rest.py`, to be started beside.
///
/// # Panics
/// Without `CALVE_PYTHON`.
pub fn python(server: &S3, what: &Value) -> Command {
    let mut command = Command::new(py::interpreter());
    command
        .arg(py::script("rest.py"))
        .args(arguments(server, what));
    command
}

fn arguments(server: &S3, what: &Value) -> [String; 2] {
    let place =
        json!({ "key": KEY, "secret": SECRET, "s3": server.endpoint(), "rest": server.catalog() });
    [place.to_string(), what.to_string()]
}
