//! The schema of a pipeline's events over its life: what the checkpoints say of it, how it may go on from
//! there, and what that means for the table.
//!
//! The first one is stored before any table is made; each record of a checkpoint has the one of its time.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use calve_connect::formats::{self, Evolve, OffsetsDecoder, evolve::follows};
use calve_engine::{
    Error, Result,
    batch::OFFSET,
    checkpoint::{Loaded, digest},
};
use calve_lake::{
    changes::{self, Mode},
    iceberg::{Evolution, IcebergConfig},
};
use serde::{Deserialize, Serialize};

use crate::config::PipelineFile;

/// Name of the schema among the fingerprints of a record.
const FINGERPRINT: &str = "schema";

/// What the checkpoints say of the schema.
#[derive(Default)]
pub(crate) struct Stored<'a> {
    /// As it was inferred at the first start.
    pub(crate) inferred: Option<&'a serde_json::Value>,
    /// What has become of it.
    pub(crate) evolved: Option<SchemaRef>,
}

impl<'a> Stored<'a> {
    pub(crate) fn of(loaded: &'a Loaded) -> Self {
        let inferred = loaded
            .meta
            .as_ref()
            .and_then(|m| m.inferred_schema.as_ref());
        let newest = inferred.and_then(|_| Versioned::newest(loaded));
        Self {
            inferred,
            evolved: newest.and_then(|newest| newest.schema()),
        }
    }
}

/// A schema as a record has it: itself, so that a later start can tell how it changed.
#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    columns: serde_json::Value,
}

impl Versioned {
    fn newest(loaded: &Loaded) -> Option<Self> {
        let stored = loaded.newest()?.fingerprints.get(FINGERPRINT)?;
        serde_json::from_str(stored).ok()
    }

    fn schema(&self) -> Option<SchemaRef> {
        formats::schema_from_json(&self.columns).ok()
    }
}

/// The schema of this run, as one of those that the pipeline has had.
pub(crate) struct SchemaVersion {
    events: SchemaRef,
    /// From 1; data files say it.
    pub(crate) number: u32,
    columns: serde_json::Value,
    /// The fingerprint of the newest record, and its schema.
    former: Option<(String, Option<SchemaRef>)>,
}

impl SchemaVersion {
    /// # Errors
    /// `Schema` for a column of a type that cannot be stored.
    pub(crate) fn of(events: &SchemaRef, loaded: &Loaded) -> Result<Self> {
        let columns = formats::schema_to_json(events)?;
        let newest = Versioned::newest(loaded);
        let number = match &newest {
            Some(newest) if newest.columns == columns => newest.version,
            Some(newest) => newest.version + 1,
            None => 1,
        };
        let former = loaded.newest().and_then(|record| {
            let text = record.fingerprints.get(FINGERPRINT)?.clone();
            Some((text, newest.and_then(|newest| newest.schema())))
        });
        Ok(Self {
            events: SchemaRef::clone(events),
            number,
            columns,
            former,
        })
    }

    /// What a record says of it.
    ///
    /// # Errors
    /// `Internal`: it is no JSON.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        serde_json::to_string(&Versioned {
            version: self.number,
            columns: self.columns.clone(),
        })
        .map_err(|e| Error::internal("a schema is no JSON").because(e))
    }

    /// The fingerprint of the former schema, where this one may follow it.
    pub(crate) fn harmless(&self, evolve: Evolve) -> BTreeMap<String, String> {
        let Some((text, former)) = &self.former else {
            return BTreeMap::new();
        };
        // A record may hold the digest alone.
        let same = *text == digest(self.columns.to_string().as_bytes());
        let follows = former
            .as_ref()
            .is_some_and(|former| follows(former, &self.events, evolve));
        (same || follows)
            .then(|| (FINGERPRINT.to_owned(), text.clone()))
            .into_iter()
            .collect()
    }
}

/// The schema of events with the column for what does not fit, behind the others.
///
/// # Errors
/// `Config` when a column of that name is something else.
pub(crate) fn with_rescued(events: SchemaRef, column: Option<&str>) -> Result<SchemaRef> {
    let Some(column) = column else {
        return Ok(events);
    };
    match events.field_with_name(column) {
        Ok(field) if *field.data_type() == DataType::Utf8 => Ok(events),
        Ok(field) => Err(Error::config(format!(
            "schema.rescued is a column of another type: column={column} type={}",
            field.data_type()
        ))
        .hint("give it another name")),
        Err(_) => {
            let mut fields: Vec<_> = events.fields().iter().cloned().collect();
            fields.push(Field::new(column, DataType::Utf8, true).into());
            Ok(Schema::new(fields).into())
        }
    }
}

/// Whether the table is a log of changes in which no column orders them: their offsets do.
pub(crate) fn is_log_by_offset(file: &PipelineFile) -> bool {
    // A pane is no single event.
    let changes = file.sink.changes().filter(|_| file.window.is_none());
    changes.is_some_and(|changes| changes.mode == Mode::Append && changes.order_by.is_empty())
}

/// Whether the rows get a column of their offsets; not where events have one of that name.
pub(crate) fn has_offsets(file: &PipelineFile, events: &Schema) -> bool {
    is_log_by_offset(file) && events.index_of(OFFSET).is_err()
}

/// The schema of events with the column of their offsets, where they get one.
pub(crate) fn with_offsets(file: &PipelineFile, events: &SchemaRef) -> SchemaRef {
    if has_offsets(file, events) {
        OffsetsDecoder::schema(events)
    } else {
        SchemaRef::clone(events)
    }
}

/// Why a log of changes has no order though offsets could be it, for people; none: it has one, or is
/// no such log.
pub(crate) fn why_no_order(
    file: &PipelineFile,
    events: &Schema,
    rows: &Schema,
) -> Option<&'static str> {
    if !is_log_by_offset(file) || rows.index_of(changes::LOG_ORDER).is_ok() {
        return None;
    }
    if events.index_of(OFFSET).is_ok() {
        return Some(
            "the log of changes gets no column _order: the events have a column _offset of their own; \
             `order_by: [_offset]` takes that one",
        );
    }
    rows.index_of(OFFSET).is_err().then_some(
        "the log of changes gets no column _order: transform.sql leaves _offset out; add it to the SELECT",
    )
}

/// In which ways the decoders look for more than the schema holds. Where the source cannot be read
/// again from an offset, the schema stays as it is.
pub(crate) fn evolve(file: &PipelineFile) -> Option<Evolve> {
    let evolve = file.schema.evolve;
    if evolve == Evolve::STRICT {
        return Some(evolve);
    }
    // States of open windows have the types that they began with.
    let widen = evolve.widen && file.aggregate.is_none();
    // Neither is not strict: nothing is looked for, and nothing refused.
    ((evolve.add || widen) && file.source.can_replay()).then_some(Evolve { widen, ..evolve })
}

/// The settings of an Iceberg table with those of the section `schema`.
pub(crate) fn with_evolution(config: &IcebergConfig, file: &PipelineFile) -> IcebergConfig {
    let Evolve { add, widen } = file.schema.evolve;
    let mut config = config.clone();
    config.evolution = Evolution {
        add,
        widen,
        rename: file.schema.rename.clone(),
        own: Vec::new(),
        fixed: Vec::new(),
    };
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str, more: &str) -> Option<Evolve> {
        let text =
            format!("name: p\nsource: {source}\nsink: {{ parquet: {{ path: out }} }}\n{more}");
        evolve(&serde_yaml_ng::from_str(&text).expect("a pipeline file"))
    }

    #[test]
    fn what_decoders_look_for() {
        let file = "{ file: { path: in } }";
        let add = Evolve {
            add: true,
            widen: false,
        };
        assert_eq!(of(file, ""), Some(Evolve::default()));
        assert_eq!(of("stdin", ""), None, "it cannot be read again");
        let strict = "schema: { evolve: strict }";
        assert_eq!(of("stdin", strict), Some(Evolve::STRICT));
        let aggregate = "aggregate: { sql: SELECT 1 }";
        assert_eq!(of(file, aggregate), Some(add));
        // Nothing is looked for, which is not to refuse everything.
        let widen = format!("{aggregate}\nschema: {{ evolve: widen }}");
        assert_eq!(of(file, &widen), None);
    }

    #[test]
    fn a_log_has_the_order_of_offsets_unless_something_else_is_there() {
        let file = |changes: &str, more: &str| -> PipelineFile {
            let text = format!(
                "name: p\nsource: {{ file: {{ path: in }} }}\n{more}\n\
                 sink: {{ iceberg: {{ catalog: {{ sqlite: a.db, warehouse: a }}, table: a.b, {changes} }} }}"
            );
            serde_yaml_ng::from_str(&text).expect("a pipeline file")
        };
        let of = |names: &[&str]| -> SchemaRef {
            let field = |name: &&str| Field::new(*name, DataType::Int64, true);
            Schema::new(names.iter().map(field).collect::<Vec<_>>()).into()
        };
        let log = file("changes: { mode: append }", "");
        let names = |file: &PipelineFile, events: &[&str]| {
            let schema = with_offsets(file, &of(events));
            let fields = schema.fields().iter();
            fields.map(|f| f.name().clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&log, &["id"]), ["id", "_offset"]);
        assert_eq!(names(&log, &["_offset", "id"]), ["_offset", "id"]);
        for other in [
            file("", ""),
            file("changes: { key: [id] }", ""),
            file("changes: { mode: append, order_by: [id] }", ""),
            file("changes: { mode: append }", "window: { fixed: 1m }"),
        ] {
            assert_eq!(names(&other, &["id"]), ["id"]);
            assert_eq!(why_no_order(&other, &of(&["id"]), &of(&["id"])), None);
        }
        let why = |events: &[&str], rows: &[&str]| why_no_order(&log, &of(events), &of(rows));
        assert_eq!(why(&["id"], &["id", "_offset"]), None);
        assert_eq!(why(&["id", "_order"], &["id", "_order"]), None);
        let left_out = why(&["id"], &["id"]).expect("nothing orders it");
        assert!(left_out.contains("add it to the SELECT"), "{left_out}");
        let own = why(&["_offset"], &["_offset"]).expect("nothing orders it");
        assert!(own.contains("order_by: [_offset]"), "{own}");
    }
}
