//! `calve query`: SQL over the tables of a catalog. Reads only; the rows go to stdout, and nothing
//! else does.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    util::{
        display::FormatOptions,
        pretty::{pretty_format_batches_with_options, pretty_format_batches_with_schema},
    },
};
use calve_engine::{Error, Result, Secret, stores::Stores};
use calve_lake::iceberg::{self, CatalogConfig, RestConfig, SigV4Config};
use datafusion::catalog::TableProvider;
use futures::{Stream, StreamExt};
use iceberg_datafusion::IcebergStaticTableProvider;

use crate::{
    config::{self, SinkConfig},
    out, pipeline,
};

/// Where a catalog is when nobody says: where `calve demo` and the examples put it.
const DEFAULT_CATALOG: &str = "lake/catalog.db";

/// Rows that the table format prints: it needs all of them at once to align the columns.
const TABLE_ROWS: usize = 1_000;

/// Queries the tables of a catalog. Tables are named `namespace.name`.
#[derive(Debug, clap::Args)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// How to print the rows
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// SELECT, SHOW, DESCRIBE or EXPLAIN, as one argument
    sql: String,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Aligned, for people; the first 1000 rows
    Table,
    /// One JSON object a line
    Json,
    /// With a header; NULL is empty
    Csv,
}

/// Which catalog; shared by the commands that look at tables.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CatalogArgs {
    /// The catalog: a SQLite file, `postgres://…`, or the URL of a REST catalog, for which
    /// CALVE_CATALOG_TOKEN, CALVE_CATALOG_CREDENTIAL (ID:SECRET) or CALVE_CATALOG_SIGV4 (a service such
    /// as glue) say who we are [default: lake/catalog.db]
    #[arg(long, value_name = "PLACE")]
    catalog: Option<String>,
    /// Name of the catalog within the database
    #[arg(long, value_name = "NAME", default_value = "default")]
    catalog_name: String,
    /// Folder of the tables, which is not needed to read them; or the warehouse of a REST catalog
    #[arg(long, value_name = "PLACE")]
    warehouse: Option<String>,
    /// Take the catalog of this pipeline file
    #[arg(long, value_name = "PIPELINE", conflicts_with_all = ["catalog", "warehouse"])]
    file: Option<PathBuf>,
}

impl CatalogArgs {
    /// The pipeline file that was named.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The catalog that is meant.
    ///
    /// # Errors
    /// `Config` when there is none, or the pipeline writes no Iceberg table.
    pub(super) fn config(&self) -> Result<CatalogConfig> {
        if let Some(file) = &self.file {
            return match config::load(file)?.sink {
                SinkConfig::Iceberg(sink) => Ok(sink.catalog),
                SinkConfig::Parquet(sink) => Err(Error::config(format!(
                    "the pipeline writes plain Parquet, which is in no catalog: file={} path={}",
                    file.display(),
                    sink.path
                ))
                .hint("read the folder with any engine that reads Parquet, DuckDB for one")),
            };
        }
        let mut config = match self.catalog.as_deref() {
            Some(url) if url.starts_with("http://") || url.starts_with("https://") => {
                self.rest(url)
            }
            Some(url) if url.starts_with("postgres") && url.contains("://") => CatalogConfig {
                sql: Some(Secret::new(url)),
                warehouse: self.warehouse.clone(),
                ..CatalogConfig::default()
            },
            path => self.sqlite(path.map(Path::new))?,
        };
        config.name.clone_from(&self.catalog_name);
        config.stores = Stores::new(pipeline::environment(), Vec::new());
        Ok(config)
    }

    fn rest(&self, url: &str) -> CatalogConfig {
        let secret = |name: &str| std::env::var(name).ok().map(Secret::new);
        let sigv4 = std::env::var("CALVE_CATALOG_SIGV4").ok();
        let rest = RestConfig {
            uri: url.to_owned(),
            warehouse: self.warehouse.clone(),
            token: secret("CALVE_CATALOG_TOKEN"),
            credential: secret("CALVE_CATALOG_CREDENTIAL"),
            sigv4: sigv4.map(|service| SigV4Config {
                service,
                ..SigV4Config::default()
            }),
            ..RestConfig::default()
        };
        CatalogConfig {
            rest: Some(Box::new(rest)),
            ..CatalogConfig::default()
        }
    }

    fn sqlite(&self, path: Option<&Path>) -> Result<CatalogConfig> {
        let path = match path {
            Some(path) => path,
            None if Path::new(DEFAULT_CATALOG).exists() => Path::new(DEFAULT_CATALOG),
            None => {
                return Err(
                    Error::config(format!("there is no catalog: file={DEFAULT_CATALOG}")).hint(
                        "name it with `--catalog FILE`, or name a pipeline file with `--file PIPELINE.yaml`; \
                         `calve demo` makes one to try",
                    ),
                );
            }
        };
        if !path.exists() {
            return Err(
                Error::config(format!("there is no catalog: file={}", path.display()))
                    .hint("check the path; the first run of a pipeline creates it"),
            );
        }
        let folder = path.parent().unwrap_or(Path::new("")).display().to_string();
        let warehouse = match &self.warehouse {
            Some(warehouse) => warehouse.clone(),
            None if folder.is_empty() => ".".to_owned(),
            None => folder,
        };
        Ok(CatalogConfig::local(path, warehouse))
    }
}

/// Runs `calve query`.
pub(crate) async fn run(args: QueryArgs) -> Result<()> {
    let config = args.catalog.config()?;
    let tables = tables(&config).await?;
    let options = calve_sql::QueryOptions::default();
    let result = Box::pin(calve_sql::query(&args.sql, tables, &options)).await?;
    let schema = result.schema();
    print(schema, result.into_stream(), args.format).await
}

/// All tables of a catalog, ready to be scanned.
pub(crate) async fn tables(
    config: &CatalogConfig,
) -> Result<Vec<(String, Arc<dyn TableProvider>)>> {
    let mut tables: Vec<(String, Arc<dyn TableProvider>)> = Vec::new();
    for info in iceberg::ls(config).await? {
        let table = iceberg::load_table(config, &info.name).await?;
        let provider = IcebergStaticTableProvider::try_new_from_table(table)
            .await
            .map_err(|e| {
                Error::corrupt(format!("cannot read the table: table={}", info.name)).because(e)
            })?;
        tables.push((info.name, Arc::new(provider)));
    }
    Ok(tables)
}

async fn print(
    schema: SchemaRef,
    mut rows: impl Stream<Item = Result<RecordBatch>> + Unpin,
    format: Format,
) -> Result<()> {
    match format {
        Format::Table => {
            let (mut batches, mut count) = (Vec::new(), 0);
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                let take = batch.num_rows().min(TABLE_ROWS - count);
                count += take;
                let cut = take < batch.num_rows();
                batches.push(batch.slice(0, take));
                if cut {
                    out::note(format!(
                        "only the first {TABLE_ROWS} rows are shown; `--format csv` and `--format json` \
                         print all"
                    ));
                    break;
                }
            }
            out::line(aligned(schema, &batches)?);
        }
        Format::Json => {
            while let Some(batch) = rows.next().await {
                print_text(&json_lines(&batch?)?);
            }
        }
        Format::Csv => {
            print_text(&csv_lines(&RecordBatch::new_empty(schema), true)?);
            while let Some(batch) = rows.next().await {
                print_text(&csv_lines(&batch?, false)?);
            }
        }
    }
    Ok(())
}

/// Whole lines as they are; nothing for no line.
fn print_text(text: &str) {
    if !text.is_empty() {
        out::line(text.strip_suffix('\n').unwrap_or(text));
    }
}

fn aligned(schema: SchemaRef, batches: &[RecordBatch]) -> Result<String> {
    let options = FormatOptions::default().with_null("NULL");
    if batches.is_empty() {
        pretty_format_batches_with_schema(schema, batches).map(|table| table.to_string())
    } else {
        pretty_format_batches_with_options(batches, &options).map(|table| table.to_string())
    }
    .map_err(|e| Error::internal("cannot show the rows").because(e))
}

fn json_lines(batch: &RecordBatch) -> Result<String> {
    let failed = |e: arrow::error::ArrowError| {
        Error::data("the rows cannot be shown as JSON")
            .because(e)
            .hint("cast the column in the query, or use `--format csv`")
    };
    let mut writer = arrow_json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow_json::writer::LineDelimited>(Vec::new());
    writer.write(batch).map_err(failed)?;
    writer.finish().map_err(failed)?;
    text(writer.into_inner())
}

fn csv_lines(batch: &RecordBatch, header: bool) -> Result<String> {
    let mut bytes = Vec::new();
    let mut writer = arrow::csv::WriterBuilder::new()
        .with_header(header)
        .build(&mut bytes);
    writer.write(batch).map_err(|e| {
        Error::data("the rows cannot be shown as CSV")
            .because(e)
            .hint("lists and structs have no place in CSV; use `--format json`")
    })?;
    drop(writer);
    text(bytes)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::internal("rows are not text").because(e))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Int64Array, StringArray},
        datatypes::{DataType, Field, Schema},
    };

    use super::*;

    fn rows() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("name", DataType::Utf8, true),
            Field::new("n", DataType::Int64, true),
        ]);
        let columns: Vec<arrow::array::ArrayRef> = vec![
            Arc::new(StringArray::from(vec![Some("a,\"b\"\nc"), None])),
            Arc::new(Int64Array::from(vec![None, Some(7)])),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).expect("rows")
    }

    #[test]
    fn rows_are_shown_in_each_format() {
        let batch = rows();
        assert_eq!(
            json_lines(&batch).expect("json"),
            "{\"name\":\"a,\\\"b\\\"\\nc\",\"n\":null}\n{\"name\":null,\"n\":7}\n"
        );
        assert_eq!(
            csv_lines(&batch, true).expect("csv"),
            "name,n\n\"a,\"\"b\"\"\nc\",\n,7\n"
        );
        let empty = RecordBatch::new_empty(batch.schema());
        assert_eq!(csv_lines(&empty, false).expect("csv"), "");
        assert_eq!(json_lines(&empty).expect("json"), "");
    }

    #[test]
    fn a_count_is_the_last_number_of_a_table() {
        let batch = rows().slice(1, 1).project(&[1]).expect("one column");
        let shown = aligned(batch.schema(), &[batch]).expect("a table");
        let last = shown
            .split(|c: char| !c.is_ascii_digit())
            .rfind(|part| !part.is_empty());
        assert_eq!(last, Some("7"));
        let none = aligned(rows().schema(), &[]).expect("a table");
        assert!(
            none.contains("name"),
            "an empty result has a header: {none}"
        );
    }

    #[test]
    fn a_missing_catalog_is_a_wrong_usage() {
        let args = CatalogArgs {
            catalog: Some("no/such/catalog.db".into()),
            catalog_name: "default".into(),
            warehouse: None,
            file: None,
        };
        let error = args.config().expect_err("there is none");
        assert_eq!(error.kind(), calve_engine::ErrorKind::Config);
        assert!(error.hint_text().is_some());
    }
}
