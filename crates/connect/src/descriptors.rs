//! Descriptors of Protobuf messages: from a descriptor set, from `.proto` files (compiled in this
//! process), or from what a server's reflection answered.
//!
//! Nothing is generated: formats and sources look messages up by name at run time. The well-known
//! files (`google/protobuf/*.proto`) are always there. Start with [`DescriptorConfig::load`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use calve_engine::{Error, Result};
use prost_reflect::{DescriptorPool, MessageDescriptor};
use prost_types::FileDescriptorProto;
use protox::file::{FileResolver, GoogleFileResolver};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Where the types of messages are described: in a descriptor set, or in `.proto` files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DescriptorConfig {
    /// A file that `protoc --include_imports --descriptor_set_out` or `buf build` made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor_set: Option<PathBuf>,
    /// `.proto` files, one or many: paths, or names as an `import` would write them.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many"
    )]
    #[schemars(with = "OneOrMany<PathBuf>")]
    pub proto: Vec<PathBuf>,
    /// Folders in which imports are looked for, one or many. Default: the folder of each `.proto`
    /// file.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many"
    )]
    #[schemars(with = "OneOrMany<PathBuf>")]
    pub include: Vec<PathBuf>,
}

/// One value, or a list of them.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

pub(crate) fn one_or_many<'de, T, D>(d: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(match OneOrMany::deserialize(d)? {
        OneOrMany::One(path) => vec![path],
        OneOrMany::Many(paths) => paths,
    })
}

impl DescriptorConfig {
    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        self.descriptor_set.is_none() && self.proto.is_empty()
    }

    /// Checks what can be checked without reading files.
    ///
    /// # Errors
    /// `Config` for both kinds at once, and for folders without a `.proto` file.
    pub fn validate(&self) -> Result<()> {
        if self.descriptor_set.is_some() && !self.proto.is_empty() {
            return Err(Error::config("both `descriptor_set` and `proto` are given")
                .hint("keep one of them"));
        }
        if self.proto.is_empty() && !self.include.is_empty() {
            return Err(Error::config("`include` is given without `proto`")
                .hint("name the .proto file: `proto: events.proto`"));
        }
        Ok(())
    }

    /// Reads and compiles what is named. Relative paths are relative to `base`; empty: the working
    /// directory.
    ///
    /// # Errors
    /// `Config` when nothing is named, for a file that is not there, and for a mistake in one, with
    /// its file, line and column.
    pub fn load(&self, base: &Path) -> Result<DescriptorPool> {
        self.validate()?;
        if let Some(set) = &self.descriptor_set {
            let path = base.join(set);
            let bytes = std::fs::read(&path).map_err(|error| {
                Error::io(format!("cannot read {}", path.display()), error)
                    .hint("make it with `protoc --include_imports --descriptor_set_out=FILE`")
            })?;
            let set = <prost_types::FileDescriptorSet as prost::Message>::decode(&*bytes);
            let set = set.map_err(|error| {
                Error::config(format!("not a descriptor set: file={}", path.display()))
                    .because(error)
                    .hint("make it with `protoc --include_imports --descriptor_set_out=FILE`")
            })?;
            return from_files(set.file).map_err(|error| error.context(path.display()));
        }
        if self.proto.is_empty() {
            return Err(Error::config("no descriptor of messages is named")
                .hint("name one: `proto: events.proto`, or `descriptor_set: events.binpb`"));
        }
        self.compile(base)
    }

    fn compile(&self, base: &Path) -> Result<DescriptorPool> {
        let mut includes: Vec<PathBuf> = self.include.iter().map(|i| base.join(i)).collect();
        for folder in &includes {
            if !folder.is_dir() {
                return Err(Error::config(format!(
                    "not a folder: include={}",
                    folder.display()
                )));
            }
        }
        let mut files = Vec::with_capacity(self.proto.len());
        for named in &self.proto {
            let path = base.join(named);
            if !path.is_file() {
                // As an import writes it, below one of the folders.
                files.push(named.clone());
                continue;
            }
            if !includes.iter().any(|folder| path.starts_with(folder)) {
                let folder = path.parent().unwrap_or(Path::new("")).to_owned();
                includes.push(folder);
            }
            files.push(path);
        }
        let mut compiler = protox::Compiler::new(&includes).map_err(compile_error)?;
        compiler.open_files(&files).map_err(compile_error)?;
        Ok(compiler.descriptor_pool())
    }
}

/// The compiler's error; its `Debug` is the one that begins with file, line and column.
fn compile_error(error: protox::Error) -> Error {
    let missing = error.is_file_not_found();
    let text = format!("{error:?}");
    let error = Error::config(text.trim().to_owned());
    if missing {
        error.hint("`include` names the folders in which imports are looked for")
    } else {
        error.hint("`protoc` would refuse the file too")
    }
}

/// The types of descriptor files, which may come in any order. Well-known files that are missing are
/// added; of files with the same name the first counts.
///
/// # Errors
/// `Config` for a missing import, and for files that contradict each other.
pub fn from_files(files: Vec<FileDescriptorProto>) -> Result<DescriptorPool> {
    let mut known: BTreeMap<String, FileDescriptorProto> = BTreeMap::new();
    for file in files {
        known.entry(file.name().to_owned()).or_insert(file);
    }
    let google = GoogleFileResolver::new();
    let mut open: Vec<String> = known.keys().cloned().collect();
    while let Some(name) = open.pop() {
        let imports = known[&name].dependency.clone();
        for import in imports {
            if known.contains_key(&import) {
                continue;
            }
            let Ok(file) = google.open_file(&import) else {
                return Err(Error::config(format!(
                    "a descriptor is missing: file={import} imported_by={name}"
                ))
                .hint("a descriptor set must hold its imports: `protoc --include_imports`"));
            };
            known.insert(import.clone(), file.file_descriptor_proto().clone());
            open.push(import);
        }
    }
    let mut pool = DescriptorPool::new();
    let mut done = BTreeSet::new();
    let names: Vec<String> = known.keys().cloned().collect();
    for name in names {
        add(&mut pool, &known, &name, &mut done)?;
    }
    Ok(pool)
}

/// Adds a file behind those that it imports. A cycle is left to the pool, which refuses it.
fn add(
    pool: &mut DescriptorPool,
    known: &BTreeMap<String, FileDescriptorProto>,
    name: &str,
    done: &mut BTreeSet<String>,
) -> Result<()> {
    if !done.insert(name.to_owned()) {
        return Ok(());
    }
    let file = &known[name];
    for import in &file.dependency {
        add(pool, known, import, done)?;
    }
    pool.add_file_descriptor_proto(file.clone())
        .map_err(|error| Error::config(format!("bad descriptor: {error:?}")))
}

/// The message with a full name, such as `shop.OrderEvent`.
///
/// # Errors
/// `Config` when there is none, with the names that are most like it.
pub fn message(pool: &DescriptorPool, name: &str) -> Result<MessageDescriptor> {
    let name = name.strip_prefix('.').unwrap_or(name);
    if let Some(found) = pool.get_message_by_name(name) {
        return Ok(found);
    }
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_lowercase();
    let wanted = (name.to_lowercase(), last(name));
    let mut others: Vec<(f64, String)> = pool
        .all_messages()
        .filter(|m| !m.is_map_entry() && !m.full_name().starts_with("google.protobuf."))
        .map(|m| {
            let whole = strsim::jaro_winkler(&wanted.0, &m.full_name().to_lowercase());
            let end = strsim::normalized_damerau_levenshtein(&wanted.1, &last(m.full_name()));
            (whole.max(end), m.full_name().to_owned())
        })
        .collect();
    others.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let error = Error::config(format!("unknown message: message={name}"));
    let names: Vec<&str> = others.iter().take(5).map(|(_, n)| n.as_str()).collect();
    Err(match (others.first(), names.len()) {
        (None, _) => error.hint("the descriptors hold no message"),
        (Some((like, nearest)), _) if *like >= 0.8 => error.hint(format!(
            "did you mean `{nearest}`? known, the nearest first: {}",
            names.join(", ")
        )),
        _ => error.hint(format!("known, the nearest first: {}", names.join(", "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = r#"
        syntax = "proto3";
        package shop;
        import "google/protobuf/timestamp.proto";
        import "parts/money.proto";
        message OrderEvent { google.protobuf.Timestamp at = 1; Money price = 2; }
    "#;
    const MONEY: &str = r#"
        syntax = "proto3";
        package shop;
        message Money { int64 cents = 1; }
    "#;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("protos/parts")).unwrap();
        std::fs::write(folder.path().join("protos/shop.proto"), SHOP).unwrap();
        std::fs::write(folder.path().join("protos/parts/money.proto"), MONEY).unwrap();
        folder
    }

    fn read(yaml: &str) -> DescriptorConfig {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    #[test]
    fn proto_files_are_found_by_path_and_by_name() {
        let folder = folder();
        for yaml in [
            "{ proto: protos/shop.proto }",
            "{ proto: [protos/shop.proto], include: [protos] }",
            "{ proto: shop.proto, include: protos }",
        ] {
            let pool = read(yaml).load(folder.path()).unwrap();
            let order = message(&pool, "shop.OrderEvent").unwrap();
            assert_eq!(order.fields().len(), 2, "{yaml}");
        }
    }

    #[test]
    fn mistakes_name_their_place() {
        let folder = folder();
        let bad = "syntax = \"proto3\";\nmessage A {\n  Nothing n = 1;\n}\n";
        std::fs::write(folder.path().join("bad.proto"), bad).unwrap();
        let error = read("proto: bad.proto").load(folder.path()).unwrap_err();
        assert!(error.message().starts_with("bad.proto:3:"), "{error}");
        let error = read("proto: gone.proto").load(folder.path()).unwrap_err();
        assert!(error.message().contains("gone.proto"), "{error}");
        let error = read("{}").load(folder.path()).unwrap_err();
        assert!(error.hint_text().unwrap().contains("descriptor_set"));
        let both = read("{ proto: a.proto, descriptor_set: b }");
        assert!(both.validate().is_err());
        // Without the folder of the import.
        std::fs::write(folder.path().join("far.proto"), SHOP).unwrap();
        let error = read("proto: far.proto").load(folder.path()).unwrap_err();
        assert!(error.message().contains("parts/money.proto"), "{error}");
        assert!(error.hint_text().unwrap().contains("include"), "{error:?}");
    }

    #[test]
    fn descriptor_files_come_in_any_order_and_well_known_ones_may_lack() {
        let folder = folder();
        let pool = read("proto: protos/shop.proto")
            .load(folder.path())
            .unwrap();
        let mut files: Vec<FileDescriptorProto> = pool.file_descriptor_protos().cloned().collect();
        files.retain(|file| !file.name().starts_with("google/"));
        for _ in 0..2 {
            files.reverse();
            let again = from_files(files.clone()).unwrap();
            assert!(message(&again, ".shop.OrderEvent").is_ok());
        }
        let set = prost_types::FileDescriptorSet {
            file: files.clone(),
        };
        let bytes = prost::Message::encode_to_vec(&set);
        std::fs::write(folder.path().join("set.binpb"), bytes).unwrap();
        assert!(
            read("descriptor_set: set.binpb")
                .load(folder.path())
                .is_ok()
        );
        files.retain(|file| file.name() != "parts/money.proto");
        let error = from_files(files).unwrap_err();
        assert!(error.message().contains("parts/money.proto"), "{error}");
    }

    #[test]
    fn an_unknown_message_has_a_neighbour() {
        let folder = folder();
        let pool = read("proto: protos/shop.proto")
            .load(folder.path())
            .unwrap();
        let error = message(&pool, "OrderEvnt").unwrap_err();
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("did you mean `shop.OrderEvent`?"), "{hint}");
    }
}
