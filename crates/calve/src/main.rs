//! The binary: reads the command line, runs a command, prints its error, and answers with the exit
//! code. Only this crate prints, reads the environment and handles signals.

mod commands;
mod config;
mod console;
mod figures;
mod human;
mod memory;
mod out;
mod pipeline;
mod schema;
mod serve;
mod shares;
mod upkeep;
mod windows;

use std::{io::IsTerminal, process::ExitCode};

use calve_engine::Error;
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Lands event streams in Apache Iceberg tables and partitioned Parquet, exactly once.
#[derive(Parser)]
#[command(
    name = "calve",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    /// How the log is written, on stderr: for people, or one JSON object a line
    #[arg(
        long,
        global = true,
        display_order = 900,
        value_enum,
        value_name = "FORMAT",
        default_value_t = LogFormat::Text
    )]
    log: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Run the main job on generated events into a local Iceberg table
    Demo(commands::demo::DemoArgs),
    /// Run a pipeline until its source ends, or SIGINT or SIGTERM (stop reading, commit, exit 0)
    Run(commands::run::RunArgs),
    /// Validate a pipeline file without writing
    Check(commands::check::CheckArgs),
    /// Say what a pipeline's windows do, with a timeline
    Explain(commands::explain::ExplainArgs),
    /// Print decoded and transformed rows, before windows and aggregates; write nothing
    Tap(commands::tap::TapArgs),
    /// Query the tables of a catalog
    Query(commands::query::QueryArgs),
    /// Look at tables and look after them
    Table(commands::table::TableArgs),
    /// Look at a pipeline's checkpoints, start over, rebuild them
    Checkpoint(commands::checkpoint::CheckpointArgs),
    /// Print a starter pipeline file
    Init(commands::init::InitArgs),
    /// Print the JSON Schema of the pipeline file
    Schema(commands::schema::SchemaArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Error::internal("cannot start the runtime").because(error)),
    };
    let result = runtime.block_on(Box::pin(dispatch(cli.command)));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn dispatch(command: Command) -> calve_engine::Result<()> {
    match command {
        Command::Demo(args) => commands::demo::run(args).await,
        Command::Run(args) => commands::run::run(args).await,
        Command::Check(args) => commands::check::run(args).await,
        Command::Explain(args) => commands::explain::run(&args),
        Command::Tap(args) => commands::tap::run(args).await,
        Command::Query(args) => commands::query::run(args).await,
        Command::Table(args) => commands::table::run(args).await,
        Command::Checkpoint(args) => Box::pin(commands::checkpoint::run(args)).await,
        Command::Init(args) => commands::init::run(args).await,
        Command::Schema(args) => commands::schema::run(args).await,
    }
}

fn fail(error: &Error) -> ExitCode {
    out::error(error);
    ExitCode::from(error.kind().decide().1)
}

/// Colours only on a terminal, and not where `NO_COLOR` is set to anything (no-color.org).
fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !unwanted && !console::dumb_terminal()
}

fn log(format: LogFormat) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_env("CALVE_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,calve=info,calve_engine=info"));
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(console::log_writer)
        .with_target(false);
    if format == LogFormat::Json {
        out::set_json();
        builder.json().init();
    } else {
        builder.with_ansi(colours()).init();
    }
}
