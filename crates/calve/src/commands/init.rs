//! `calve init`: a pipeline file to begin with, on standard output.

use calve_engine::Result;
use clap::{Args, ValueEnum};

use crate::out;

/// Prints a pipeline file with comments, to be changed.
#[derive(Args)]
pub(crate) struct InitArgs {
    /// What to begin with
    #[arg(value_enum, default_value_t = Kind::Iceberg)]
    kind: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// JSON files into an Iceberg table
    Iceberg,
    /// JSON files into partitioned Parquet
    Parquet,
    /// Made-up events into an Iceberg table
    Generator,
    /// Events that are posted over HTTP into an Iceberg table
    Http,
    /// CSV files into an Iceberg table
    Csv,
    /// Debezium's changes into an Iceberg table that equals the source's
    Changes,
    /// Token transfers of the Stellar network into an Iceberg table
    TokenTransfers,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Iceberg => include_str!("starters/iceberg.yaml"),
            Self::Parquet => include_str!("starters/parquet.yaml"),
            Self::Generator => include_str!("starters/generator.yaml"),
            Self::Http => include_str!("starters/http.yaml"),
            Self::Csv => include_str!("starters/csv.yaml"),
            Self::Changes => include_str!("starters/changes.yaml"),
            Self::TokenTransfers => include_str!("starters/token-transfers.yaml"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// None.
#[allow(
    clippy::unused_async,
    reason = "every command is called in the same way"
)]
pub(crate) async fn run(args: InitArgs) -> Result<()> {
    out::line(args.kind.text().trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{commands::check, config};

    #[test]
    fn starters_are_valid_and_their_sql_can_be_planned() {
        for kind in Kind::value_variants() {
            let file = config::parse(kind.text(), &|_| None);
            let file = file.unwrap_or_else(|error| panic!("{kind:?}: {error:?}"));
            let events = check::known_schema(&file)
                .expect("a schema")
                .expect("declared columns");
            check::plan(&file, &events).unwrap_or_else(|error| panic!("{kind:?}: {error:?}"));
        }
    }
}
