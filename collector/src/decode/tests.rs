//! NetFlow and IPFIX: the corpus, the rules, hostile input.

use serde_json::{Map, Value, json};

use super::testing::{Case, corpus, differences, rows};
use super::*;

/// Decodes a case as `weir decode` does: rows in wire order, datagram by datagram.
fn decode_case(case: &Case) -> (Vec<Map<String, Value>>, Decoder) {
    let config = DecodeConfig { clock_check: false, ..DecodeConfig::default() };
    let mut decoder = Decoder::new(Arc::new(config), Arc::default());
    let mut out = Batches::new();
    let mut all = Vec::new();
    for (datagram, received_us) in case.datagrams.iter().zip(&case.received_us) {
        let sender = "192.0.2.10".parse().unwrap();
        let meta = DatagramMeta { sender, sender_port: 50_000, local_port: 2055, received_us: *received_us };
        let outcome = decoder.decode(datagram, &meta, &mut out);
        assert_ne!(outcome.rejected, Some(RejectReason::DecoderPanic), "{}", case.name);
        let (mut flows, mut events) =
            (rows(&mut out.flows).into_iter(), rows(&mut out.nat_events).into_iter());
        for (table, count) in decoder.row_order() {
            let from = if *table == Table::NatEvents { &mut events } else { &mut flows };
            all.extend(from.by_ref().take(*count as usize));
        }
        assert!(
            flows.next().is_none() && events.next().is_none(),
            "{}: row_order is not complete",
            case.name
        );
    }
    (all, decoder)
}

#[test]
fn corpus_cases_decode_to_the_expected_rows() {
    let mut cases: Vec<Case> = ["v5", "v7", "v9", "ipfix"].into_iter().flat_map(corpus).collect();
    if cases.is_empty() {
        // outside of the place where the corpus lies there is nothing to compare with
        return;
    }
    let mut wrong = Vec::new();
    for case in &mut cases {
        let (mut rows, decoder) = decode_case(case);
        rows.retain(|row| row.get("reverse") != Some(&json!(true)));
        let expected = &case.meta["expected"];
        if expected["flow_records_if_buffered"].as_u64() == Some(rows.len() as u64) {
            rows.drain(..rows.len() - case.expected.len());
        }
        let mut found = differences(case, &rows, true);
        let sum = |count: fn(&Counters) -> u64| {
            decoder.exporters().iter().map(|state| count(&state.counters)).sum::<u64>()
        };
        let templates = ["templates", "options_templates"].map(|key| expected[key].as_u64().unwrap());
        for (what, have, want) in [
            ("templates", sum(|c| c.templates), templates.iter().sum()),
            ("options records", sum(|c| c.options_records), expected["options_records"].as_u64().unwrap()),
            ("unknown sets", sum(|c| c.template_misses), expected["unknown_template_sets"].as_u64().unwrap()),
        ] {
            if have != want {
                found.push(format!("{}: {have} {what}, expected {want}", case.name));
            }
        }
        let errors = !expected["decode_errors"].as_array().unwrap().is_empty();
        let rejected =
            decoder.counters().rejected.iter().chain(&decoder.counters().sets_rejected).sum::<u64>();
        if errors != (rejected > 0) {
            found.push(format!("{}: {rejected} rejects, expected {}", case.name, expected["decode_errors"]));
        }
        found.truncate(6);
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{} cases, {} differences:\n{}", cases.len(), wrong.len(), wrong.join("\n"));
}
