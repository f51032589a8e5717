//! Protobuf to Arrow on one thread, token transfers of all five kinds to the same 17 columns: calve's
//! decoder by descriptor, structs of prost with Arrow's builders, and dynamic messages of
//! prost-reflect with the same builders. `-- --in-turn` prints the least times of many rounds.

mod theirs;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;
use calve_connect::formats::protobuf::{ProtobufDecoder, token_transfers};
use calve_engine::batch::Messages;
use criterion::{Criterion, Throughput, criterion_group};
use prost::Message;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use self::theirs::{
    Asset, AssetType, Burn, Event, EventMeta, IssuedAsset, Mint, MuxedContent, MuxedInfo, Static,
    TokenTransferEvent, Transfer,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// About 1 MiB, which is what a source gives at once.
const EVENTS: usize = 4_000;
/// Rounds of `--in-turn`.
const ROUNDS: usize = 300;

fn key(first: char, random: &mut ChaCha8Rng) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let rest = (0..55).map(|_| char::from(*DIGITS.choose(random).expect("one")));
    std::iter::once(first).chain(rest).collect()
}

/// Mostly fees and transfers, as on the public network.
fn event(n: usize, random: &mut ChaCha8Rng) -> TokenTransferEvent {
    let fee = random.random_ratio(55, 100);
    let asset = match random.random_range(0..10) {
        _ if fee => Some(AssetType::Native(true)),
        0..5 => Some(AssetType::Native(true)),
        5..9 => Some(AssetType::IssuedAsset(IssuedAsset {
            asset_code: "USDC".to_owned(),
            issuer: key('G', random),
        })),
        _ => None,
    };
    let asset = asset.map(|of| Asset {
        asset_type: Some(of),
    });
    let amount = random.random_range(1..10_000_000_000_i64).to_string();
    let (from, to) = (key('G', random), key('G', random));
    let burn = |amount| Burn {
        from: from.clone(),
        asset: asset.clone(),
        amount,
    };
    let event = match random.random_range(0..20) {
        _ if fee => Event::Fee(burn("100".to_owned())),
        0 => Event::Burn(burn(amount)),
        1 => Event::Clawback(burn(amount)),
        2 => Event::Mint(Mint { to, asset, amount }),
        _ => Event::Transfer(Transfer {
            from,
            to,
            asset,
            amount,
        }),
    };
    let digits = (0..64).map(|_| b"0123456789abcdef"[random.random_range(0..16)]);
    let hash = digits.map(char::from).collect();
    let muxed = random.random_ratio(1, 50).then(|| MuxedInfo {
        content: Some(MuxedContent::Id(random.random())),
    });
    TokenTransferEvent {
        meta: Some(EventMeta {
            ledger_sequence: 53_312_000 + (n / 300) as u32,
            closed_at: Some(prost_types::Timestamp {
                seconds: 1_725_274_219 + (n / 300) as i64 * 5,
                nanos: 0,
            }),
            tx_hash: hash,
            transaction_index: (n % 300) as u32,
            operation_index: (!fee).then_some(1),
            contract_address: key('C', random),
            to_muxed_info: muxed,
        }),
        event: Some(event),
    }
}

fn messages() -> Messages {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut messages = Messages::default();
    let mut bytes = Vec::new();
    for n in 0..EVENTS {
        event(n, &mut random).encode(&mut bytes).expect("room");
        messages.ends.push(bytes.len() as u32);
        messages.offsets.push(53_312_000 + (n / 300) as u64);
        messages.ordinals.push((n % 300) as u32);
    }
    messages.bytes = bytes.into();
    messages
}

type Decode = Box<dyn FnMut(&Messages) -> RecordBatch>;

/// Each way by its name, ours first. They make the same rows.
fn ways() -> [(&'static str, Decode); 3] {
    let config = token_transfers().expect("the preset");
    let schema = config.schema().expect("a schema");
    let mut ours = ProtobufDecoder::new(&config, &schema).expect("a decoder");
    let fixed = Static::new(&schema);
    let of = config.descriptor().expect("the message");
    let dynamic = Static::new(&schema);
    [
        (
            "calve",
            Box::new(move |messages| {
                let decoded = ours.decode_messages(messages).expect("rows");
                assert!(decoded.rejects.is_empty());
                decoded.rows
            }),
        ),
        ("prost", Box::new(move |messages| fixed.decode(messages))),
        (
            "prost-reflect",
            Box::new(move |messages| dynamic.decode_dynamic(&of, messages)),
        ),
    ]
}

fn benches(criterion: &mut Criterion) {
    let messages = messages();
    let mut group = criterion.benchmark_group("token transfers");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for (name, mut decode) in ways() {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(decode(black_box(&messages))));
        });
    }
    group.finish();
}

/// All in turn, each round of each timed alone: the least of them is what the code costs, however
/// busy the machine is.
#[expect(clippy::print_stdout, reason = "a table is what it is for")]
fn in_turn() {
    let messages = messages();
    let mut ways = ways();
    let rows: Vec<RecordBatch> = ways
        .iter_mut()
        .map(|(_, decode)| decode(&messages))
        .collect();
    assert!(rows.iter().all(|other| *other == rows[0]), "other rows");
    let mut least = [f64::INFINITY; 3];
    for _ in 0..ROUNDS {
        for ((_, decode), least) in ways.iter_mut().zip(&mut least) {
            let start = Instant::now();
            black_box(decode(black_box(&messages)));
            *least = least.min(start.elapsed().as_secs_f64());
        }
    }
    let bytes = messages.bytes.len() / EVENTS;
    println!("{EVENTS} token transfers of {bytes} bytes on the average");
    println!("| way | ns an event | M events/s | times ours |\n|---|---|---|---|");
    for ((name, _), seconds) in ways.iter().zip(least) {
        let each = seconds / EVENTS as f64;
        let (rate, ratio) = (1e-6 / each, seconds / least[0]);
        println!("| {name} | {:.0} | {rate:.2} | {ratio:.2} |", each * 1e9);
    }
}

criterion_group!(protobuf, benches);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--in-turn") {
        return in_turn();
    }
    if args.iter().any(|arg| arg == "--ours") {
        // For a profiler.
        let (messages, mut ways) = (messages(), ways());
        for _ in 0..20 * ROUNDS {
            black_box((ways[0].1)(black_box(&messages)));
        }
        return;
    }
    protobuf();
    Criterion::default().configure_from_args().final_summary();
}
