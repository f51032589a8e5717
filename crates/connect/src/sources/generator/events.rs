//! The text of made-up events, block by block. A block depends only on the settings, its source
//! partition and its number, so any of them can be made again.

use super::{
    changes::Changes,
    config::{GeneratorConfig, GeneratorKind, TemplateField, TimestampForm},
};

/// Events of one block.
pub(crate) const BLOCK_EVENTS: u64 = 4096;

/// A SplitMix64 stream (Steele, Lea, Flood, OOPSLA 2014): fast, seedable at any point.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(parts: &[u64]) -> Self {
        let mut random = Self(0x5EED);
        for part in parts {
            random.0 = random.next() ^ *part;
        }
        Self(random.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`; the bias of one part in 2^64 / n does not matter here.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// From 0 (inclusive) to 1 (exclusive).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.unit() < p
    }
}

/// Makes the events of one source partition.
pub(crate) struct Events {
    config: GeneratorConfig,
    partition: u64,
    /// Keys of a template, as JSON with the colon and what comes before.
    keys: Vec<String>,
    plain: bool,
    /// For kind `changes`.
    changes: Option<Changes>,
}

impl Events {
    pub(crate) fn new(config: &GeneratorConfig, partition: u64) -> Self {
        let fields = config
            .fields
            .iter()
            .flat_map(|fields| &fields.0)
            .enumerate();
        let key = |(i, (name, _)): (usize, &(String, TemplateField))| {
            format!(
                "{}{}:",
                if i == 0 { "{" } else { "," },
                serde_json::Value::from(name.as_str())
            )
        };
        Self {
            keys: fields.map(key).collect(),
            plain: config.late.is_none()
                && config.out_of_order.is_none()
                && config.duplicates <= 0.0
                && config.malformed <= 0.0,
            changes: (config.kind == GeneratorKind::Changes).then(|| {
                let changes = config.changes.clone().unwrap_or_default();
                Changes::new(&changes, config.seed, partition, config.partitions.into())
            }),
            config: config.clone(),
            partition,
        }
    }

    /// Appends block `number`: a line for each event.
    pub(crate) fn block(&self, number: u64, into: &mut Vec<u8>) {
        let mut random = Random::new(&[self.config.seed, self.partition, number]);
        into.reserve(BLOCK_EVENTS as usize * 112);
        let mut before = into.len();
        let turns = self.changes.as_ref().and_then(|c| c.turns(number));
        for index in number * BLOCK_EVENTS..(number + 1) * BLOCK_EVENTS {
            let index = match &turns {
                Some(turns) => turns[(index % BLOCK_EVENTS) as usize],
                None => index,
            };
            let start = into.len();
            if self.plain {
                self.event(index, index as f64 / self.config.density, &mut random, into);
                continue;
            }
            if before < start && random.chance(self.config.duplicates) {
                into.extend_from_within(before..start);
                before = start;
                continue;
            }
            before = start;
            let mut seconds = index as f64 / self.config.density;
            if let Some(span) = self.config.out_of_order {
                seconds += (random.unit() * 2.0 - 1.0) * span.0.as_secs_f64();
            }
            if let Some(late) = self.config.late
                && random.chance(late.fraction)
            {
                seconds -= late.by.0.as_secs_f64();
            }
            self.event(index, seconds, &mut random, into);
            if random.chance(self.config.malformed) {
                // Cut off in the middle: no JSON any more, and still one line.
                let length = into.len() - start;
                into.truncate(start + 1 + random.below(length as u64 - 2) as usize);
                into.push(b'\n');
                before = into.len();
            }
        }
    }

    fn event(&self, index: u64, seconds: f64, random: &mut Random, into: &mut Vec<u8>) {
        match self.config.kind {
            GeneratorKind::Sales => self.sale(seconds, random, into),
            GeneratorKind::Sizes => size(random, into),
            GeneratorKind::Changes => {
                if let Some(changes) = &self.changes {
                    changes.write(index, self.config.start_ts, seconds, into);
                }
            }
            GeneratorKind::Template => self.template(index, seconds, random, into),
        }
        into.push(b'\n');
    }

    fn sale(&self, seconds: f64, random: &mut Random, into: &mut Vec<u8>) {
        let (one, two) = (random.next(), random.next());
        into.extend_from_slice(b"{\"ts\":");
        write_signed(self.config.start_ts + seconds.floor() as i64, into);
        into.extend_from_slice(b",\"user_id\":");
        write(1 + scale(one as u32, 100_000), into);
        into.extend_from_slice(match scale((one >> 32) as u32, 100) {
            0..40 => b",\"region\":\"us\",\"amount\":".as_slice(),
            40..65 => b",\"region\":\"eu\",\"amount\":",
            65..85 => b",\"region\":\"apac\",\"amount\":",
            85..95 => b",\"region\":\"latam\",\"amount\":",
            _ => b",\"region\":\"africa\",\"amount\":",
        });
        let amount = scale(two as u32, 1_000_000);
        write(amount / 10_000, into);
        into.push(b'.');
        write_padded::<4>(amount % 10_000, into);
        into.extend_from_slice(b",\"sku\":\"SKU-");
        write_padded::<5>(scale((two >> 32) as u32, 5000), into);
        into.extend_from_slice(b"\"}");
    }

    fn template(&self, index: u64, seconds: f64, random: &mut Random, into: &mut Vec<u8>) {
        let fields = self.config.fields.iter().flat_map(|fields| &fields.0);
        for ((_, field), key) in fields.zip(&self.keys) {
            into.extend_from_slice(key.as_bytes());
            match field {
                TemplateField::Sequence(first) => {
                    write_signed(first.wrapping_add_unsigned(index), into);
                }
                TemplateField::Choice(values) => {
                    let value = &values[random.below(values.len() as u64) as usize];
                    into.extend_from_slice(value.to_string().as_bytes());
                }
                TemplateField::Uniform([low, high]) => {
                    let value = low + random.unit() * (high - low);
                    into.extend_from_slice(format!("{value:.4}").as_bytes());
                }
                TemplateField::Integer([low, high]) => {
                    let span = high.wrapping_sub(*low) as u64;
                    let value = match span.checked_add(1) {
                        Some(n) => random.below(n),
                        None => random.next(),
                    };
                    write_signed(low.wrapping_add_unsigned(value), into);
                }
                TemplateField::Timestamp(form) => self.timestamp(*form, seconds, into),
                TemplateField::Bool(p) => {
                    into.extend_from_slice(if random.unit() < *p {
                        b"true"
                    } else {
                        b"false"
                    });
                }
                TemplateField::Uuid(_) => {
                    let (a, b) = (random.next(), random.next());
                    let text = format!(
                        "\"{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}\"",
                        a >> 32,
                        (a >> 16) & 0xffff,
                        a & 0xfff,
                        0x8000 | (b >> 50),
                        b & 0xffff_ffff_ffff
                    );
                    into.extend_from_slice(text.as_bytes());
                }
                TemplateField::Constant(value) => {
                    into.extend_from_slice(value.to_string().as_bytes());
                }
            }
        }
        into.extend_from_slice(if self.keys.is_empty() {
            b"{}".as_slice()
        } else {
            b"}"
        });
    }

    fn timestamp(&self, form: TimestampForm, seconds: f64, into: &mut Vec<u8>) {
        let micros = (seconds * 1e6).floor() as i64 + self.config.start_ts * 1_000_000;
        match form {
            TimestampForm::S => write_signed(micros.div_euclid(1_000_000), into),
            TimestampForm::Ms => write_signed(micros.div_euclid(1000), into),
            TimestampForm::Us => write_signed(micros, into),
            TimestampForm::Iso => {
                let at = chrono::DateTime::from_timestamp_micros(micros).unwrap_or_default();
                let text = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
                into.extend_from_slice(format!("\"{text}\"").as_bytes());
            }
        }
    }
}

fn size(random: &mut Random, into: &mut Vec<u8>) {
    let bits = random.next();
    into.extend_from_slice(b"{\"name\":\"");
    into.push(b'A' + (bits & 7) as u8);
    into.extend_from_slice(match scale((bits >> 32) as u32, 3) {
        0 => b"\",\"size\":\"small\",\"count\":".as_slice(),
        1 => b"\",\"size\":\"medium\",\"count\":",
        _ => b"\",\"size\":\"large\",\"count\":",
    });
    into.push(b'0' + scale((bits as u32) >> 3 << 3, 10) as u8);
    into.push(b'}');
}

/// Maps 32 random bits to 0..n.
fn scale(bits: u32, n: u64) -> u64 {
    (u64::from(bits) * n) >> 32
}

pub(super) fn write(mut n: u64, into: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    into.extend_from_slice(&digits[at..]);
}

pub(super) fn write_signed(n: i64, into: &mut Vec<u8>) {
    if n < 0 {
        into.push(b'-');
    }
    write(n.unsigned_abs(), into);
}

pub(super) fn write_padded<const WIDTH: usize>(mut n: u64, into: &mut Vec<u8>) {
    let mut digits = [b'0'; WIDTH];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (n % 10) as u8;
        n /= 10;
    }
    into.extend_from_slice(&digits);
}
