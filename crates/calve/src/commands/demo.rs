//! `calve demo`: the main job on generated events into a local Iceberg table.

use std::{path::PathBuf, time::Duration};

use calve_engine::{Error, Result};

use super::run;
use crate::{config, human, out};

/// Arguments of `calve demo`.
#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// How long to run
    #[arg(long, default_value_t = 10, value_name = "N")]
    seconds: u64,
    /// Where the table, its catalog and the checkpoints go
    #[arg(long, default_value = "calve-demo", value_name = "DIR")]
    dir: PathBuf,
    /// Events per second; as fast as it goes when left out
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
    /// Where to serve /health, /ready, /metrics and /api/status; `none` for nowhere
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: String,
}

const TEMPLATE: &str = include_str!("demo.yaml");

pub(crate) async fn run(args: DemoArgs) -> Result<()> {
    let dir = args.dir.display().to_string();
    std::fs::create_dir_all(&args.dir)
        .map_err(|e| Error::io(format!("cannot create the demo's folder: path={dir}"), e))?;
    let rate = args.rate.map_or(String::new(), |r| format!(", rate: {r}"));
    let mut text = TEMPLATE.replace("DIR", &dir).replace(", RATE", &rate);
    if args.listen != "none" {
        text.push_str(&format!("serve: {{ listen: \"{}\" }}\n", args.listen));
    }
    let path = args.dir.join("demo.yaml");
    std::fs::write(&path, text)
        .map_err(|e| Error::io(format!("cannot write: path={}", path.display()), e))?;
    let file = config::load(&path)?;
    out::note(format!(
        "calve demo: generated sales events into the Iceberg table shop.orders below {dir}/lake, for {} s",
        args.seconds
    ));
    let done = run::supervise(&file, Some(Duration::from_secs(args.seconds)), false).await?;
    done.summarize(&file);

    let status = done.metrics.status();
    let rate = done.summary.run.events as f64 / done.elapsed.as_secs_f64().max(0.001);
    out::line("");
    out::line(format!(
        "  table       shop.orders in {dir}/lake/catalog.db"
    ));
    out::line(format!("  rows        {}", status.rows_committed));
    out::line(format!("  rejects     {}", done.summary.run.rejects));
    out::line(format!("  files       {}", status.files_committed));
    out::line(format!(
        "  size        {}",
        human::bytes(status.bytes_committed)
    ));
    out::line(format!("  snapshots   {}", status.snapshots));
    out::line(format!("  rate        {} events/s", human::count(rate)));
    // As this program was called: it need not be on the path.
    let called = std::env::args().next().filter(|name| !name.is_empty());
    let calve = word(&called.unwrap_or_else(|| "calve".to_owned()));
    let catalog = format!("--catalog {}", word(&format!("{dir}/lake/catalog.db")));
    let file = word(&path.display().to_string());
    out::line("\nTry next:");
    out::line(format!(
        "  {calve} query {catalog} 'SELECT region, bucket, count(*) AS n, avg(amount) FROM shop.orders GROUP BY 1, 2 ORDER BY 1, 2'"
    ));
    out::line(format!("  {calve} table show {catalog} shop.orders"));
    out::line(format!("  {calve} checkpoint ls {file}"));
    out::line(format!(
        "  {calve} run {file}    # goes on where this stopped"
    ));
    Ok(())
}

/// A word as a shell wants it, so that what is printed can be pasted.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=~,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_can_be_pasted() {
        assert_eq!(word("target/release/calve"), "target/release/calve");
        assert_eq!(word("my lake"), "'my lake'");
        assert_eq!(word("it's"), r"'it'\''s'");
        assert_eq!(word(""), "''");
    }
}
