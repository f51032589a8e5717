//! JSON to Arrow on one thread: calve's decoder and arrow-json on the same events, side by side.
//!
//! `sizes` and `sales` are the events of the micro benchmark and of the main job; their variants
//! hold what makes a decoder that predicts leave its path. `-- --in-turn` prints the least times of
//! many rounds instead of criterion's statistics, which need a quiet machine.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use calve_connect::formats::json::JsonDecoder;
use criterion::{Criterion, Throughput, criterion_group};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 10_000;
/// Rounds of `--in-turn`.
const ROUNDS: usize = 1000;
/// Keys that are longer than the 16 bytes that are compared at once.
const LONG_KEYS: [&str; 5] = [
    "event_timestamp",
    "customer_number",
    "sales_region_of_the_customer",
    "amount_without_tax",
    "stock_keeping_unit",
];
const REGIONS: [&str; 5] = ["us", "eu", "apac", "latam", "africa"];

type Pairs = Vec<(&'static str, String)>;

fn sizes(random: &mut ChaCha8Rng) -> Pairs {
    let name = char::from(b'A' + random.random_range(0..8_u8));
    let size = ["small", "medium", "large"][random.random_range(0..3)];
    vec![
        ("name", format!("\"{name}\"")),
        ("size", format!("\"{size}\"")),
        ("count", random.random_range(0..10).to_string()),
    ]
}

fn sales(random: &mut ChaCha8Rng) -> Pairs {
    let amount = f64::from(random.random_range(0..1_000_000)) / 10_000.0;
    vec![
        (
            "ts",
            (1_763_700_000 + random.random_range(0..14_400)).to_string(),
        ),
        ("user_id", random.random_range(1..=100_000).to_string()),
        (
            "region",
            format!("\"{}\"", REGIONS[random.random_range(0..5)]),
        ),
        ("amount", format!("{amount:?}")),
        (
            "sku",
            format!("\"SKU-{:05}\"", random.random_range(0..5000)),
        ),
    ]
}

fn sizes_schema() -> SchemaRef {
    schema(&[
        ("name", DataType::Utf8),
        ("size", DataType::Utf8),
        ("count", DataType::Int64),
    ])
}

fn sales_schema() -> SchemaRef {
    schema(&[
        ("ts", DataType::Int64),
        ("user_id", DataType::Int64),
        ("region", DataType::Utf8),
        ("amount", DataType::Float64),
        ("sku", DataType::Utf8),
    ])
}

fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
    let fields = fields
        .iter()
        .map(|(name, of)| Field::new(*name, of.clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Writes events: `change` may alter the pairs; `comma` and `colon` stand between them.
fn text(
    event: fn(&mut ChaCha8Rng) -> Pairs,
    (comma, colon): (&str, &str),
    change: impl Fn(&mut ChaCha8Rng, &mut Pairs),
) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut text = String::new();
    for _ in 0..EVENTS {
        let mut pairs = event(&mut random);
        change(&mut random, &mut pairs);
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(key, value)| format!("\"{key}\"{colon}{value}"))
            .collect();
        text.push_str(&format!("{{{}}}\n", pairs.join(comma)));
    }
    text.into_bytes()
}

fn nulls(random: &mut ChaCha8Rng, pairs: &mut Pairs) {
    for (_, value) in pairs {
        if random.random_ratio(1, 5) {
            "null".clone_into(value);
        }
    }
}

fn half_reordered(random: &mut ChaCha8Rng, pairs: &mut Pairs) {
    if random.random() {
        pairs.reverse();
    }
}

fn escapes(_: &mut ChaCha8Rng, pairs: &mut Pairs) {
    for (_, value) in pairs.iter_mut().filter(|(_, value)| value.starts_with('"')) {
        value.insert_str(value.len() - 1, "\\n\\u00e9");
    }
}

fn nested_extras(random: &mut ChaCha8Rng, pairs: &mut Pairs) {
    let extra = format!(
        "{{\"ip\":\"10.0.0.{}\",\"tags\":[\"a\",\"b\",{{\"c\":1.5}}]}}",
        random.random::<u8>()
    );
    pairs.insert(1, ("context", extra));
}

/// A case: its name, its schema, its text.
type Case = (String, SchemaRef, Vec<u8>);

fn cases() -> Vec<Case> {
    type Event = fn(&mut ChaCha8Rng) -> Pairs;
    let kinds: [(&str, Event, SchemaRef); 2] = [
        ("sizes", sizes, sizes_schema()),
        ("sales", sales, sales_schema()),
    ];
    let tight = (",", ":");
    // What Python's json.dumps writes.
    let loose = (", ", ": ");
    let mut cases: Vec<Case> = Vec::new();
    for (kind, event, schema) in kinds.clone() {
        let spacing = if kind == "sizes" { loose } else { tight };
        let mut add = |variant: &str, text| {
            cases.push((format!("{kind}/{variant}"), schema.clone(), text));
        };
        add("plain", text(event, spacing, |_, _| {}));
        add("nulls", text(event, spacing, nulls));
        add("half_reordered", text(event, spacing, half_reordered));
        add(
            "random_order",
            text(event, spacing, |random, pairs| pairs.shuffle(random)),
        );
        add("escapes", text(event, spacing, escapes));
        add("whitespace", text(event, (" ,\t", " :  "), |_, _| {}));
        add("nested_extras", text(event, spacing, nested_extras));
    }
    let long_keys = text(sales, tight, |_, pairs| {
        for ((key, _), long) in pairs.iter_mut().zip(LONG_KEYS) {
            *key = long;
        }
    });
    let plain = sales_schema();
    let long = LONG_KEYS.iter().zip(plain.fields());
    let long: Vec<_> = long
        .map(|(name, field)| (*name, field.data_type().clone()))
        .collect();
    cases.push(("sales/long_keys".into(), schema(&long), long_keys));
    for (kind, event, schema) in kinds {
        let spacing = if kind == "sizes" { loose } else { tight };
        let events = text(event, spacing, |_, _| {});
        cases.push((
            format!("{kind}/dictionaries"),
            with_dictionaries(&schema),
            events,
        ));
    }
    cases
}

/// The same columns, but dictionaries for strings.
fn with_dictionaries(schema: &Schema) -> SchemaRef {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => Field::new(field.name(), dictionary.clone(), true),
        _ => field.as_ref().clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Decodes the text with calve; the rows are dropped.
fn ours(schema: &SchemaRef) -> impl FnMut(&[u8]) {
    let mut decoder = JsonDecoder::new(schema.clone()).expect("supported types");
    move |text| {
        let decoded = decoder.decode_lines(black_box(text), 0).expect("rows");
        assert_eq!(decoded.rows.num_rows(), EVENTS);
        black_box(decoded);
    }
}

/// Decodes the text with arrow-json, which takes no dictionaries: plain strings for them.
fn theirs(schema: &SchemaRef) -> impl FnMut(&[u8]) {
    let plain = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Dictionary(..) => Field::new(field.name(), DataType::Utf8, true),
        _ => field.as_ref().clone(),
    });
    let plain = Arc::new(Schema::new(plain.collect::<Vec<_>>()));
    let mut decoder = arrow_json::ReaderBuilder::new(plain)
        .with_batch_size(EVENTS + 1)
        .build_decoder()
        .expect("supported types");
    move |text| {
        decoder.decode(black_box(text)).expect("json");
        let rows = decoder.flush().expect("rows").expect("some");
        assert_eq!(rows.num_rows(), EVENTS);
        black_box(rows);
    }
}

fn benches(criterion: &mut Criterion) {
    for (name, schema, text) in cases() {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(EVENTS as u64));
        group
            .sample_size(50)
            .warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        let mut decode = ours(&schema);
        group.bench_function("calve", |bencher| bencher.iter(|| decode(&text)));
        let mut decode = theirs(&schema);
        group.bench_function("arrow-json", |bencher| bencher.iter(|| decode(&text)));
        group.finish();
    }
}

/// Both in turn, each round of each timed alone: the least of them is what the code costs, however
/// busy the machine is.
#[expect(clippy::print_stdout, reason = "a table is what it is for")]
fn in_turn() {
    println!("| events | calve ms | arrow-json ms | ratio |\n|---|---|---|---|");
    for (name, schema, text) in cases() {
        let (mut ours, mut theirs) = (ours(&schema), theirs(&schema));
        let mut least = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            least[0] = least[0].min(milliseconds(|| ours(&text)));
            least[1] = least[1].min(milliseconds(|| theirs(&text)));
        }
        let [calve, arrow] = least;
        println!(
            "| {name} | {calve:.3} | {arrow:.3} | {:.1} |",
            arrow / calve
        );
    }
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}

criterion_group!(json, benches);

fn main() {
    if std::env::args().any(|arg| arg == "--in-turn") {
        return in_turn();
    }
    json();
    Criterion::default().configure_from_args().final_summary();
}
