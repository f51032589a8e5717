//! `calve table`: looks at tables, here; looks after them, in a file for each command.

mod clean;
mod compact;
mod delete;
mod expire;
mod live;
mod verify;

use calve_engine::{Error, Result};
use calve_lake::iceberg::{self, ShardInfo, SnapshotInfo, TableDetails, TableInfo};
use calve_model::{Offsets, watermark::END_OF_TIME};
use serde::Serialize;

use super::query::CatalogArgs;
use crate::out;

/// Snapshots that `show` prints as text.
const SHOWN_SNAPSHOTS: usize = 10;
/// Source partitions of a shard that `show` prints as text.
const SHOWN_PARTITIONS: usize = 10;

/// Looks at tables, and looks after them.
#[derive(Debug, clap::Args)]
pub(crate) struct TableArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lists the tables of a catalog
    Ls(LsArgs),
    /// Shows a table: columns, partition spec, totals, pipelines, snapshots
    Show(ShowArgs),
    /// Makes few files of many small ones, and leaves out deleted rows
    Compact(compact::CompactArgs),
    /// Deletes the rows that a filter means, in one snapshot
    Delete(delete::DeleteArgs),
    /// Forgets old snapshots, and removes the files that only those referred to
    Expire(expire::ExpireArgs),
    /// Removes files that no snapshot and no checkpoint refers to
    Clean(clean::CleanArgs),
    /// Checks files, counts, deletes, history and checkpoints; exit 1 when something is wrong
    Verify(verify::VerifyArgs),
}

#[derive(Debug, clap::Args)]
struct LsArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// Everything, as JSON
    #[arg(long)]
    json: bool,
    /// The table: namespace.name
    table: String,
}

/// Runs `calve table`.
pub(crate) async fn run(args: TableArgs) -> Result<()> {
    match args.command {
        Command::Ls(args) => ls(args).await,
        Command::Show(args) => show(args).await,
        Command::Compact(args) => compact::compact(args).await,
        Command::Delete(args) => delete::delete(args).await,
        Command::Expire(args) => expire::expire(args).await,
        Command::Clean(args) => clean::clean(args).await,
        Command::Verify(args) => verify::verify(args).await,
    }
}

async fn ls(args: LsArgs) -> Result<()> {
    let tables = iceberg::ls(&args.catalog.config()?).await?;
    if args.json {
        tables.iter().try_for_each(|table| {
            out::line(json(table)?);
            Ok(())
        })
    } else {
        let mut rows = vec![
            [
                "TABLE",
                "ROWS",
                "FILES",
                "SIZE",
                "SNAPSHOTS",
                "UPDATED",
                "PARTITION BY",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows.extend(tables.iter().map(list_row));
        out::line(aligned(&rows));
        Ok(())
    }
}

fn list_row(info: &TableInfo) -> Vec<String> {
    vec![
        info.name.clone(),
        number(info.totals.rows),
        number(info.totals.files),
        info.totals.bytes.map_or("?".to_owned(), size),
        info.snapshots.to_string(),
        info.updated_ms.map_or("never".to_owned(), utc_ms),
        list(&info.partition_by),
    ]
}

async fn show(args: ShowArgs) -> Result<()> {
    let details = iceberg::show(&args.catalog.config()?, &args.table).await?;
    if args.json {
        let text = serde_json::to_string_pretty(&details)
            .map_err(|e| Error::internal("cannot express a table as JSON").because(e))?;
        out::line(text);
    } else {
        out::line(described(&details));
    }
    Ok(())
}

/// A table for people.
fn described(table: &TableDetails) -> String {
    let info = &table.info;
    let pair = |name: &str, value: String| vec![name.to_owned(), value];
    let mut text = aligned(&[
        pair("table", info.name.clone()),
        pair("location", info.location.clone()),
        pair("uuid", table.uuid.clone()),
        pair("format version", info.format_version.to_string()),
        pair("partition by", list(&info.partition_by)),
        pair("sort by", list(&table.sort_by)),
        pair("rows", number(info.totals.rows)),
        pair("files", number(info.totals.files)),
        pair("size", info.totals.bytes.map_or("?".to_owned(), size)),
        pair(
            "updated",
            info.updated_ms.map_or("never".to_owned(), utc_ms),
        ),
    ]);
    let mut section = |title: &str, rows: &[Vec<String>]| {
        if !rows.is_empty() {
            text.push_str(&format!("\n\n{title}\n{}", indented(&aligned(rows))));
        }
    };
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|c| {
            let null = if c.required { "not null" } else { "" };
            vec![
                c.id.to_string(),
                c.name.clone(),
                c.data_type.clone(),
                null.to_owned(),
            ]
        })
        .collect();
    section("columns", &columns);
    let properties: Vec<_> = table
        .properties
        .iter()
        .map(|(name, value)| vec![name.clone(), value.clone()])
        .collect();
    section("properties", &properties);
    for shard in &table.shards {
        section(
            &format!("pipeline {}, shard {}", shard.pipeline, shard.shard),
            &shard_rows(shard),
        );
    }
    let shown = table.snapshots.len().min(SHOWN_SNAPSHOTS);
    let snapshots: Vec<_> = table.snapshots[..shown].iter().map(snapshot_row).collect();
    section(
        &format!("snapshots, the last {shown} of {}", table.snapshots.len()),
        &snapshots,
    );
    text
}

fn shard_rows(shard: &ShardInfo) -> Vec<Vec<String>> {
    let mut rows = vec![
        vec!["epoch".to_owned(), shard.epoch.to_string()],
        vec![
            "watermark".to_owned(),
            shard.watermark.map_or("none".to_owned(), event_time),
        ],
    ];
    if let Some(complete) = shard.windows_complete {
        let closed = format!("closed up to {}", event_time(complete));
        rows.push(vec!["windows".to_owned(), closed]);
    }
    if let Some(record) = &shard.record {
        rows.push(vec!["record".to_owned(), record.clone()]);
    }
    match &shard.offsets {
        Some(offsets) => rows.extend(offset_rows(offsets)),
        None => rows.push(vec![
            "offsets".to_owned(),
            "not in the history any more".to_owned(),
        ]),
    }
    if let Some(trouble) = &shard.trouble {
        rows.push(vec!["trouble".to_owned(), trouble.clone()]);
    }
    rows
}

/// How far each source partition is accounted for; the first ones, and how many more there are.
pub(super) fn offset_rows(offsets: &Offsets) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = offsets
        .0
        .iter()
        .take(SHOWN_PARTITIONS)
        .map(|(partition, at)| {
            let end = if at.done { " (ended)" } else { "" };
            vec![
                "offset".to_owned(),
                format!("{partition} {}{end}", at.offset),
            ]
        })
        .collect();
    let more = offsets.0.len().saturating_sub(SHOWN_PARTITIONS);
    if more > 0 {
        rows.push(vec!["offset".to_owned(), format!("and {more} more")]);
    }
    rows
}

fn snapshot_row(snapshot: &SnapshotInfo) -> Vec<String> {
    let by = snapshot.epoch.as_ref().map_or_else(
        || "another writer".to_owned(),
        |(pipeline, shard, epoch)| format!("{pipeline}/{shard} epoch {epoch}"),
    );
    vec![
        utc_ms(snapshot.timestamp_ms),
        snapshot.operation.clone(),
        format!("+{} rows", snapshot.added_rows.unwrap_or(0)),
        format!("+{} files", snapshot.added_files.unwrap_or(0)),
        by,
        snapshot.id.to_string(),
    ]
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal("cannot express JSON").because(e))
}

/// Columns of text, two spaces apart.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            let widths = rows.iter().filter_map(|row| row.get(at));
            widths.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let lines = rows.iter().map(|row| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let pad = width - cell.chars().count() + 2;
            line.extend(std::iter::repeat_n(' ', pad));
        }
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

fn list(terms: &[String]) -> String {
    if terms.is_empty() {
        "none".to_owned()
    } else {
        terms.join(", ")
    }
}

fn number(value: Option<u64>) -> String {
    value.map_or("?".to_owned(), |value| value.to_string())
}

/// A size with one decimal, in the largest binary unit that fits.
pub(super) fn size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor {
            return format!("{:.1} {unit}", bytes as f64 / factor as f64);
        }
    }
    format!("{bytes} B")
}

/// Milliseconds of processing time, in UTC.
pub(super) fn utc_ms(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(
        || format!("{ms} ms"),
        |at| at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
    )
}

/// Microseconds of event time, in UTC.
pub(super) fn event_time(micros: i64) -> String {
    if micros == END_OF_TIME {
        return "end of time".to_owned();
    }
    chrono::DateTime::from_timestamp_micros(micros).map_or_else(
        || format!("{micros} us"),
        |at| at.format("%Y-%m-%dT%H:%M:%S%.fZ").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use calve_model::{Position, SourcePartition};

    use super::*;

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let rows = [
            vec!["a".to_owned(), "bé".to_owned(), "c".to_owned()],
            vec!["long".to_owned(), String::new()],
        ];
        assert_eq!(aligned(&rows), "a     bé  c\nlong");
        assert_eq!(aligned(&[]), "");
    }

    #[test]
    fn times_and_sizes_are_for_people() {
        assert_eq!(event_time(1_700_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(event_time(1_500_000), "1970-01-01T00:00:01.500Z");
        assert_eq!(event_time(END_OF_TIME), "end of time");
        assert_eq!(event_time(i64::MIN), format!("{} us", i64::MIN));
        assert_eq!(utc_ms(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
    }

    #[test]
    fn many_source_partitions_are_cut() {
        let mut offsets = Offsets::default();
        for n in 0..12 {
            let position = Position {
                offset: n,
                done: n == 0,
                tag: None,
            };
            offsets
                .0
                .insert(SourcePartition::new(format!("f{n:02}")), position);
        }
        let rows = offset_rows(&offsets);
        assert_eq!(rows.len(), SHOWN_PARTITIONS + 1);
        assert_eq!(rows[0][1], "f00 0 (ended)");
        assert_eq!(rows[SHOWN_PARTITIONS][1], "and 2 more");
    }
}
