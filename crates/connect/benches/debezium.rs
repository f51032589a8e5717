//! Debezium's changes to rows on one thread: calve's decoder, and arrow-json on the schema of the
//! envelope, which leaves the choice of the image to others. `-- --in-turn` as in the bench `json`.

use std::{
    fmt::Write as _,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::datatypes::{DataType, Field, Schema};
use calve_connect::formats::{
    Columns, DebeziumConfig,
    debezium::{DebeziumDecoder, DecimalEncoding},
};
use criterion::{Criterion, Throughput, criterion_group};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHANGES: usize = 10_000;
/// Rounds of `--in-turn`.
const ROUNDS: usize = 300;
const COLUMNS: [(&str, &str); 7] = [
    ("id", "bigint"),
    ("customer_name", "varchar"),
    ("product_name", "varchar"),
    ("quantity", "bigint"),
    ("price", "double"),
    ("order_date", "bigint"),
    ("status", "varchar"),
];

/// What a case is made of.
#[derive(Clone, Copy, Default)]
struct Kind {
    /// The change stands behind its schema.
    schema: bool,
    /// Prices are base64 of a decimal.
    decimal: bool,
    /// Of the metadata nothing is asked for.
    bare: bool,
}

fn row(random: &mut ChaCha8Rng, kind: Kind) -> String {
    let price = if kind.decimal {
        format!(
            "\"{}\"",
            ["AOjx", "AYag", "APl6"][random.random_range(0..3)]
        )
    } else {
        format!("{:.2}", random.random_range(1.0..2000.0))
    };
    format!(
        "{{\"id\":{},\"customer_name\":\"{}\",\"product_name\":\"{}\",\"quantity\":{},\"price\":{price},\
         \"order_date\":{},\"status\":\"{}\"}}",
        random.random_range(1..500_000),
        ["Brenda Garcia", "John Henry", "Jamie Munoz"][random.random_range(0..3)],
        ["Headphones", "Laptop", "Smartphone"][random.random_range(0..3)],
        random.random_range(1..6),
        1_734_539_354_748_899_i64 + random.random_range(0..10_000_000_000),
        ["Delivered", "Shipped", "Cancelled", "Pending"][random.random_range(0..4)],
    )
}

/// Changes as a Postgres connector writes them: creates, as many updates with both images, and one
/// delete in twenty.
fn text(kind: Kind) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let fields: Vec<String> = COLUMNS
        .iter()
        .map(|(name, of)| {
            let of = match *of {
                _ if kind.decimal && *name == "price" => {
                    r#""bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2","connect.decimal.precision":"10"}"#
                }
                "bigint" => "\"int64\"",
                "double" => "\"double\"",
                _ => "\"string\"",
            };
            format!("{{\"type\":{of},\"optional\":true,\"field\":\"{name}\"}}")
        })
        .collect();
    let fields = fields.join(",");
    let mut text = String::new();
    for n in 0..CHANGES as u64 {
        let (before, after, op) = match n % 20 {
            0 => (row(&mut random, kind), "null".to_owned(), "d"),
            1..=10 => (row(&mut random, kind), row(&mut random, kind), "u"),
            _ => ("null".to_owned(), row(&mut random, kind), "c"),
        };
        let lsn = 66_756_335_160 + n * 296;
        let ts = 1_734_568_154_752 + n;
        let change = format!(
            "{{\"before\":{before},\"after\":{after},\"source\":{{\"version\":\"2.3.4.Final\",\
             \"connector\":\"postgresql\",\"name\":\"arroyo\",\"ts_ms\":{ts},\"snapshot\":\"false\",\
             \"db\":\"testdb\",\"sequence\":\"[\\\"{}\\\",\\\"{lsn}\\\"]\",\"schema\":\"public\",\
             \"table\":\"orders\",\"txId\":{},\"lsn\":{lsn},\"xmin\":null}},\"op\":\"{op}\",\
             \"ts_ms\":{ts},\"transaction\":null}}",
            lsn - 256,
            2_218_863 + n,
        );
        let _ = if kind.schema {
            writeln!(
                text,
                "{{\"schema\":{{\"type\":\"struct\",\"fields\":[\
                 {{\"type\":\"struct\",\"fields\":[{fields}],\"optional\":true,\"field\":\"before\"}},\
                 {{\"type\":\"struct\",\"fields\":[{fields}],\"optional\":true,\"field\":\"after\"}},\
                 {{\"type\":\"string\",\"optional\":false,\"field\":\"op\"}}],\"optional\":false}},\
                 \"payload\":{change}}}"
            )
        } else {
            writeln!(text, "{change}")
        };
    }
    text
}

/// A case: its name, what it is made of, its text.
type Case = (&'static str, Kind, String);

fn cases() -> Vec<Case> {
    let plain = Kind::default();
    let (schema, bare, decimal) = (true, true, true);
    [
        ("plain", plain),
        ("no_metadata", Kind { bare, ..plain }),
        ("with_schema", Kind { schema, ..plain }),
        ("decimals", Kind { decimal, ..plain }),
    ]
    .map(|(name, kind)| (name, kind, text(kind)))
    .to_vec()
}

fn ours(kind: Kind) -> impl FnMut(&str) {
    let columns = COLUMNS.map(|(name, of)| {
        let of = match name {
            "price" if kind.decimal => "decimal(10, 2)",
            _ => of,
        };
        (name.to_owned(), of.to_owned())
    });
    let config = DebeziumConfig {
        columns: Some(Columns(columns.to_vec())),
        metadata: if kind.bare {
            Vec::new()
        } else {
            vec!["source.lsn".to_owned(), "ts_ms".to_owned()]
        },
        decimal: DecimalEncoding::Precise,
        ..DebeziumConfig::default()
    };
    let format = calve_connect::formats::FormatConfig::Debezium(config.clone());
    let schema = format.declared_schema().expect("declared").expect("schema");
    let mut decoder = DebeziumDecoder::new(&config, schema).expect("supported types");
    move |text| {
        let decoded = decoder
            .decode_lines(black_box(text.as_bytes()), 0)
            .expect("rows");
        assert_eq!(decoded.rows.num_rows(), CHANGES);
        black_box(decoded);
    }
}

fn theirs(kind: Kind) -> impl FnMut(&str) {
    let columns = COLUMNS.map(|(name, of)| {
        let of = match of {
            "bigint" => DataType::Int64,
            "double" if kind.decimal => DataType::Utf8,
            "double" => DataType::Float64,
            _ => DataType::Utf8,
        };
        Field::new(name, of, true)
    });
    let image = DataType::Struct(columns.to_vec().into());
    let lsn = DataType::Struct(vec![Field::new("lsn", DataType::Int64, true)].into());
    let mut fields = vec![
        Field::new("before", image.clone(), true),
        Field::new("after", image, true),
        Field::new("op", DataType::Utf8, true),
    ];
    if !kind.bare {
        fields.push(Field::new("source", lsn, true));
        fields.push(Field::new("ts_ms", DataType::Int64, true));
    }
    if kind.schema {
        let payload = DataType::Struct(fields.into());
        fields = vec![Field::new("payload", payload, true)];
    }
    let mut decoder = arrow_json::ReaderBuilder::new(Arc::new(Schema::new(fields)))
        .with_batch_size(CHANGES + 1)
        .build_decoder()
        .expect("supported types");
    move |text| {
        decoder.decode(black_box(text.as_bytes())).expect("json");
        let rows = decoder.flush().expect("rows").expect("some");
        assert_eq!(rows.num_rows(), CHANGES);
        black_box(rows);
    }
}

fn benches(criterion: &mut Criterion) {
    for (name, kind, text) in cases() {
        let mut group = criterion.benchmark_group(format!("debezium/{name}"));
        group.throughput(Throughput::Elements(CHANGES as u64));
        group
            .sample_size(30)
            .warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        let mut decode = ours(kind);
        group.bench_function("calve", |bencher| bencher.iter(|| decode(&text)));
        let mut decode = theirs(kind);
        group.bench_function("arrow-json", |bencher| bencher.iter(|| decode(&text)));
        group.finish();
    }
}

/// Both in turn, each round of each timed alone: the least of them is what the code costs, however
/// busy the machine is.
#[expect(clippy::print_stdout, reason = "a table is what it is for")]
fn in_turn() {
    println!(
        "| changes | bytes each | calve M/s | arrow-json M/s | ratio |\n|---|---|---|---|---|"
    );
    for (name, kind, text) in cases() {
        let (mut ours, mut theirs) = (ours(kind), theirs(kind));
        let mut least = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            least[0] = least[0].min(seconds(|| ours(&text)));
            least[1] = least[1].min(seconds(|| theirs(&text)));
        }
        let [calve, arrow] = least.map(|seconds| CHANGES as f64 / seconds / 1e6);
        println!(
            "| {name} | {} | {calve:.2} | {arrow:.2} | {:.1} |",
            text.len() / CHANGES,
            calve / arrow
        );
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

criterion_group!(debezium, benches);

fn main() {
    if std::env::args().any(|arg| arg == "--in-turn") {
        return in_turn();
    }
    debezium();
    Criterion::default().configure_from_args().final_summary();
}
