//! Creates the table that a pipeline wants, or compares the one that is there with it.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::Schema as ArrowSchema;
use calve_engine::error::{Error, Result};
use iceberg::{
    TableCreation,
    spec::{
        FormatVersion, Schema, SortField, SortOrder, TableMetadata, TableMetadataBuilder,
        Transform, UnboundPartitionSpec,
    },
};

use super::{
    catalog::Catalog,
    config::{IcebergConfig, SortTerm, TableName, Term},
    evolve::{self, Evolved, Planned},
    publish::DELETE_AFTER_COMMIT,
    schema,
};
use crate::changes::{LOG_ORDER, Mode};

/// The table, created when missing, else checked; and the schema to write with, where the table is to
/// follow the pipeline.
///
/// # Errors
/// `Schema` with the differences when the table does not fit the pipeline, and may not follow it.
pub(super) async fn create_or_check(
    catalog: &Catalog,
    config: &IcebergConfig,
    table: &TableName,
    rows: &ArrowSchema,
) -> Result<(Arc<TableMetadata>, Option<Evolved>)> {
    let loaded = match catalog.load(table, None).await? {
        Some(loaded) => loaded,
        None => match catalog
            .create_table(table, |location| plan(config, table, rows, location))
            .await?
        {
            Some(loaded) => {
                let location = loaded.metadata.location();
                tracing::info!(%table, location, "created the table");
                loaded
            }
            // Somebody else was faster.
            None => catalog.load(table, None).await?.ok_or_else(|| {
                Error::conflict(format!("the table comes and goes: table={table}"))
            })?,
        },
    };
    let evolved = check(&loaded.metadata, config, table, rows)?;
    let unlike = unlike(&loaded.metadata, config);
    if !unlike.is_empty() {
        let settings = unlike.join(", ");
        tracing::warn!(
            %table,
            settings,
            "the table is not as the pipeline would create it, and stays as it is"
        );
    }
    Ok((loaded.metadata, evolved))
}

/// Settings for a new table that this one was not created with, or has changed since.
pub(super) fn unlike(metadata: &TableMetadata, config: &IcebergConfig) -> Vec<String> {
    let mut unlike = Vec::new();
    if !config.sort_by.is_empty() {
        let wanted = sort_order(config, metadata.current_schema());
        let has = &metadata.default_sort_order().fields;
        if wanted.is_ok_and(|wanted| wanted.fields != *has) {
            unlike.push("sort_by".to_owned());
        }
    }
    let properties = config.properties.iter();
    let others = properties.filter(|(key, value)| metadata.properties().get(*key) != Some(value));
    unlike.extend(others.map(|(key, _)| format!("properties.{key}")));
    if config.format_version > metadata.format_version() as u8 {
        unlike.push("format_version".to_owned());
    }
    unlike
}

/// The first metadata of a new table.
pub(super) fn plan(
    config: &IcebergConfig,
    table: &TableName,
    rows: &ArrowSchema,
    location: String,
) -> Result<TableMetadata> {
    let version = match config.format_version {
        2 => FormatVersion::V2,
        3 => FormatVersion::V3,
        other => {
            return Err(
                Error::config(format!("no such format version: format_version={other}"))
                    .hint("write 2, which all readers know, or 3"),
            );
        }
    };
    if let Some(key) = config
        .properties
        .keys()
        .find(|key| super::held::is_own(key))
    {
        return Err(Error::config(format!(
            "this property is calve's own: property={key}"
        )));
    }
    let schema = schema::table_schema(rows)?;
    let creation = TableCreation {
        name: table.name.clone(),
        location: Some(location),
        partition_spec: Some(partition_spec(config, &schema)?),
        sort_order: Some(sort_order(config, &schema)?),
        schema,
        properties: properties(config),
        format_version: version,
    };
    let built = TableMetadataBuilder::from_table_creation(creation)
        .and_then(TableMetadataBuilder::build)
        .map_err(|e| {
            Error::config(format!("the table cannot be created: table={table}")).because(e)
        })?;
    Ok(built.metadata)
}

fn properties(config: &IcebergConfig) -> HashMap<String, String> {
    let defaults = [
        (DELETE_AFTER_COMMIT, "true"),
        ("write.metadata.previous-versions-max", "100"),
    ];
    let mut properties: HashMap<String, String> = defaults
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    properties.extend(config.properties.clone());
    properties
}

/// The field id of a term's column, of a type that the transform takes.
fn source(term: &Term, schema: &Schema) -> Result<i32> {
    let field = schema
        .as_struct()
        .fields()
        .iter()
        .find(|f| f.name == term.column)
        .ok_or_else(|| {
            let names: Vec<&str> = schema
                .as_struct()
                .fields()
                .iter()
                .map(|f| f.name.as_str())
                .collect();
            Error::config(format!(
                "no such column: term={term} column={}",
                term.column
            ))
            .hint(format!("the columns are: {}", names.join(", ")))
        })?;
    term.transform.result_type(&field.field_type).map_err(|_| {
        Error::config(format!(
            "the column's type does not suit the transform: term={term} type={}",
            schema::show(&field.field_type)
        ))
        .hint(
            "year, month, day want a date or timestamp; hour a timestamp; CAST it in transform.sql",
        )
    })?;
    Ok(field.id)
}

fn partition_spec(config: &IcebergConfig, schema: &Schema) -> Result<UnboundPartitionSpec> {
    let mut builder = UnboundPartitionSpec::builder();
    for text in &config.partition_by {
        let term = Term::parse(text)?;
        let id = source(&term, schema)?;
        let mut name = term.field_name();
        while term.transform != Transform::Identity && schema.field_by_name(&name).is_some() {
            name.push_str("_part");
        }
        builder = builder
            .add_partition_field(id, name, term.transform)
            .map_err(|e| {
                Error::config(format!("the table cannot be partitioned so: term={term}")).because(e)
            })?;
    }
    Ok(builder.build())
}

fn sort_order(config: &IcebergConfig, schema: &Schema) -> Result<SortOrder> {
    if config.sort_by.is_empty() {
        return Ok(SortOrder::unsorted_order());
    }
    let fields = config
        .sort_by
        .iter()
        .map(|text| {
            let sort = SortTerm::parse(text)?;
            Ok(SortField {
                source_id: source(&sort.term, schema)?,
                transform: sort.term.transform,
                direction: sort.direction,
                null_order: sort.nulls,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    SortOrder::builder()
        .with_order_id(1)
        .with_fields(fields)
        .build(schema)
        .map_err(|e| Error::config("the table cannot be sorted so").because(e))
}

/// The partition spec as the terms that the user would write.
pub(super) fn partition_terms(metadata: &TableMetadata) -> Vec<String> {
    let schema = metadata.current_schema();
    metadata
        .default_partition_spec()
        .fields()
        .iter()
        .filter(|field| field.transform != Transform::Void)
        .map(|field| {
            let column = schema
                .name_by_field_id(field.source_id)
                .unwrap_or("?")
                .to_owned();
            Term {
                transform: field.transform,
                column,
            }
            .to_string()
        })
        .collect()
}

/// Rows that are there would have no key if one of its columns were new.
fn check_key(
    metadata: &TableMetadata,
    config: &IcebergConfig,
    table: &TableName,
    evolved: &Evolved,
) -> Result<()> {
    let Some(changes) = &config.changes else {
        return Ok(());
    };
    let now = metadata.current_snapshot().map(|now| now.summary());
    let files = now.map(|now| now.additional_properties.get("total-data-files"));
    if changes.mode == Mode::Append || files.is_none_or(|files| files.is_some_and(|n| n == "0")) {
        return Ok(());
    }
    let is_new = |name: &&String| {
        let id = evolved.schema.field_id_by_name(name);
        id.is_some_and(|id| id > evolved.base)
    };
    match changes.key.iter().find(is_new) {
        None => Ok(()),
        Some(name) => Err(Error::config(format!(
            "the table has rows, and lacks a column of changes.key: table={table} column={name}"
        ))
        .hint(format!(
            "if the column had another name, say so: `schema: {{ rename: {{ OLD_NAME: {name} }} }}`; \
             for another key take another table"
        ))),
    }
}

/// Compares a table with what the pipeline wants; answers the schema that it is to become, if any.
pub(super) fn check(
    metadata: &TableMetadata,
    config: &IcebergConfig,
    table: &TableName,
    rows: &ArrowSchema,
) -> Result<Option<Evolved>> {
    if metadata.format_version() == FormatVersion::V1 {
        return Err(
            Error::config(format!("the table has format version 1: table={table}"))
                .hint("upgrade the table to format version 2"),
        );
    }
    let mut evolution = config.evolution.clone();
    if let Some(changes) = &config.changes {
        // A log that an older version made lacks them, whatever rows may bring.
        if changes.mode == Mode::Append {
            let numbered = (1..=changes.order_by.len()).map(|n| format!("_order_{n}"));
            evolution.own.extend(numbered.chain([LOG_ORDER.to_owned()]));
        }
        // The index of keys has them as bytes of their types.
        evolution.fixed.extend(changes.key.iter().cloned());
        evolution.fixed.extend(changes.order_by.iter().cloned());
        let stored = (1..=changes.order_by.len()).map(|n| format!("_calve_order_{n}"));
        evolution
            .fixed
            .extend(stored.chain(["_calve_order".to_owned()]));
    }
    let Planned {
        evolved,
        refused: mut lines,
    } = evolve::plan(metadata, rows, &evolution)?;
    if !lines.is_empty() {
        lines.insert(0, "columns:".to_owned());
    }
    if let Some(evolved) = &evolved {
        check_key(metadata, config, table, evolved)?;
    }
    // A column that gets another name may be called by either.
    let renamed = |mut term: Term| {
        if let Some(new) = config.evolution.rename.get(&term.column) {
            term.column.clone_from(new);
        }
        term.to_string()
    };
    let has = partition_terms(metadata);
    let has = has.iter().map(|text| Term::parse(text).map(renamed));
    let has = has.collect::<Result<Vec<_>>>()?;
    let wants = config.partition_by.iter();
    let wants = wants.map(|text| Term::parse(text).map(renamed));
    let wants = wants.collect::<Result<Vec<_>>>()?;
    if has != wants {
        lines.push("partition_by:".to_owned());
        lines.extend(
            has.iter()
                .filter(|term| !wants.contains(term))
                .map(|term| format!("- {term}")),
        );
        lines.extend(
            wants
                .iter()
                .filter(|term| !has.contains(term))
                .map(|term| format!("+ {term}")),
        );
        if lines.last().is_some_and(|line| line == "partition_by:") {
            lines.push(format!("- {}", has.join(", ")));
            lines.push(format!("+ {}", wants.join(", ")));
        }
    }
    if lines.is_empty() {
        return Ok(evolved);
    }
    let hint = "change transform.sql or partition_by to fit the table, let the table follow with \
                `schema.evolve`, or write to another table";
    let of_changes = "; columns of changes.key and changes.order_by keep their types, and \
                      `schema: { evolve: add }` lets all others keep theirs too";
    let more = config.changes.as_ref().map_or("", |_| of_changes);
    Err(Error::schema(format!(
        "the table does not fit the pipeline (-: the table, +: the pipeline): table={table}\n{}",
        lines.join("\n")
    ))
    .hint(format!("{hint}{more}")))
}
