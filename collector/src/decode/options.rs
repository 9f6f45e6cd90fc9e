//! Options data records: rows of the table `options`, and what flow records need of them.

use weir_schemas::elements::{DataType, IANA};
use weir_schemas::tables::OptionsColumn;

use super::compile::{Extra, Plan};
use super::format::{trimmed, write_value};
use super::records::{Fields, Fixed, Records, Walked};
use super::run::{Room, SetContext, SetOutcome, application_id, interval};
use super::sampling::{Learned, cut_name, out_of_rate, packets_rate, plausible};
use super::wire::{float, octets, unsigned};
use crate::columns::Builder;

/// An options record takes as much of a datagram's room as so many records of flows: it is a dozen octets or more.
const COST: usize = 4;

/// Decodes a data set of options records: rows to `out`, what flows need to `learned`.
pub(crate) fn run_options(
    plan: &Plan,
    data: &[u8],
    context: &SetContext<'_>,
    room: &mut Room,
    out: &mut Builder,
    learned: &mut Vec<Learned>,
) -> SetOutcome {
    let layout = &plan.layout;
    let most = room.records / COST;
    if !layout.variable {
        let whole = data.len() / layout.record.max(1);
        let count = whole.min(most);
        room.records -= count * COST;
        let Some(data) = data.get(..count * layout.record) else { return SetOutcome::default() };
        rows(plan, &Fixed::new(data, layout.record), context, out, learned);
        return SetOutcome { records: count as u32, rows: count as u32, truncated: count < whole };
    }
    let mut places = Vec::new();
    let end = Walked::walk(data, &layout.fields, most, &mut places);
    let records = Walked::new(data, &places, layout.fields.len());
    rows(plan, &records, context, out, learned);
    room.records -= records.count() * COST;
    let count = records.count() as u32;
    let truncated = data.len() - end >= layout.record;
    SetOutcome { records: count, rows: count, truncated }
}

fn rows<R: Records>(
    plan: &Plan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    learned: &mut Vec<Learned>,
) {
    let n = records.count();
    let exporter = context.exporter_addr(context.view.agent);
    out.times(OptionsColumn::ReceivedAt.index()).push_n(context.received_us, n);
    out.ips(OptionsColumn::ExporterAddr.index()).push_n(exporter, n);
    out.u32s(OptionsColumn::ObservationDomain.index()).push_n(context.domain, n);
    out.labels(OptionsColumn::ProtoVer.index()).push_n(context.protocol.label(), n);
    out.u16s(OptionsColumn::TemplateId.index()).push_n(plan.template.id, n);
    for row in 0..n {
        for (column, scope) in [(OptionsColumn::Scope, true), (OptionsColumn::Fields, false)] {
            let maps = out.maps(column.index());
            let fields =
                plan.named.iter().zip(&plan.identities).filter(|(_, (_, id, s))| *s == scope && *id != 210);
            for (Extra { name, data_type, span }, (enterprise, id, _)) in fields {
                let bytes = records.bytes(row, *span);
                // as in the column of flows, so that the two can be joined
                let application = if *id == 95 && *enterprise == IANA { application_id(bytes) } else { None };
                maps.entry_with(name, |out| match &application {
                    Some(text) => out.extend_from_slice(text.as_bytes()),
                    None => write_value(out, *data_type, bytes, &context.around),
                });
            }
            maps.close_row();
        }
        learned.extend(learn(plan, records, row, context));
    }
    out.advance(n);
}

/// What flow records need of one options record; None where it says nothing of the kind.
fn learn<R: Records>(plan: &Plan, records: &R, row: usize, context: &SetContext<'_>) -> Option<Learned> {
    let mut learned = Learned::default();
    let mut rates = SamplingFields::default();
    let (mut application, mut name) = (None, None);
    for (extra, (enterprise, id, scope)) in plan.named.iter().zip(&plan.identities) {
        let bytes = records.bytes(row, extra.span);
        if *enterprise == u32::MAX {
            // RFC 3954 §6.1: system and cache are the whole of it
            match id {
                2 => learned.interface = Some(unsigned(bytes)),
                3 => learned.narrow = true,
                5 => learned.template = Some(unsigned(bytes)),
                _ => {}
            }
            continue;
        }
        if *enterprise != IANA {
            continue;
        }
        match id {
            10 | 14 if *scope => learned.interface = Some(unsigned(bytes)),
            141 | 142 if *scope => learned.narrow = true,
            145 if *scope => learned.template = Some(unsigned(bytes)),
            48 | 302 => learned.sampler = Some(unsigned(bytes)),
            130 if bytes.len() == 4 => learned.agent = Some(weir_schemas::Address::v4(octets(bytes, 0)).0),
            131 if bytes.len() == 16 => learned.agent = Some(octets(bytes, 0)),
            160 if bytes.len() == 8 => {
                learned.boot_us = i64::try_from(unsigned(bytes)).ok().and_then(|ms| ms.checked_mul(1_000));
            }
            95 => application = Some(bytes),
            96 if extra.data_type == DataType::String => name = Some(trimmed(bytes)),
            _ => rates.take(*id, bytes, context.exporter.little_endian_sampling),
        }
    }
    learned.boot_us = learned.boot_us.filter(|us| *us > 0);
    learned.agent = learned.agent.filter(|agent| !weir_schemas::Address(*agent).is_unspecified());
    learned.rate = rates.rate();
    if let (Some(id), Some(name)) =
        (application.filter(|id| !id.is_empty()), name.filter(|name| !name.is_empty()))
    {
        let name = String::from_utf8_lossy(name);
        learned.application = Some((id.into(), cut_name(&name).into()));
    }
    let says = learned.rate.is_some()
        || learned.boot_us.is_some()
        || learned.agent.is_some()
        || learned.application.is_some();
    says.then_some(learned)
}

/// The fields of a record from which a rate follows.
#[derive(Debug, Default)]
struct SamplingFields {
    interval: Option<u64>,
    random: Option<u64>,
    algorithm: Option<u64>,
    taken: Option<u64>,
    skipped: Option<u64>,
    size: Option<u64>,
    population: Option<u64>,
    probability: Option<f64>,
}

impl SamplingFields {
    fn take(&mut self, id: u16, bytes: &[u8], little_endian: bool) {
        let slot = match id {
            34 => &mut self.interval,
            50 => &mut self.random,
            304 => &mut self.algorithm,
            305 => &mut self.taken,
            306 => &mut self.skipped,
            309 => &mut self.size,
            310 => &mut self.population,
            311 => {
                self.probability = float(bytes);
                return;
            }
            _ => return,
        };
        *slot = Some(interval(bytes, little_endian && matches!(id, 34 | 50)));
    }

    fn rate(&self) -> Option<f64> {
        let out_of =
            self.size.zip(self.population).and_then(|(size, population)| out_of_rate(size, population));
        out_of
            .or_else(|| packets_rate(self.taken?, self.skipped, self.algorithm))
            .or_else(|| plausible(1.0 / self.probability.filter(|p| *p > 0.0)?))
            .or_else(|| plausible(self.random? as f64))
            .or_else(|| plausible(self.interval? as f64))
    }
}
