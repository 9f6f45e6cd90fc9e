//! Rules about what is counted and kept: whole datagrams in, rows and counters out.

use super::*;
use crate::decode::ExporterConfig;

type Row = Map<String, Value>;

fn decode(decoder: &mut Decoder, message: &Builder9) -> Vec<Row> {
    let mut out = Batches::new();
    let outcome = decoder.decode(&message.build(), &sender(50_000), &mut out);
    assert_eq!(outcome.rejected, None);
    rows(&mut out.flows)
}

fn decoder(config: DecodeConfig) -> Decoder {
    Decoder::new(Arc::new(config), Arc::default())
}

const VOLUME: &[(u16, u16)] = &[(8, 4), (1, 4), (2, 4), (34, 4)];

#[test]
fn rule_01_the_count_of_a_v9_header_is_a_hint() {
    let message = Builder9::v9(0).template(256, &[(7, 2)]).set(256, &[0, 1, 0, 2, 0, 3]);
    for count in [0_u16, 1, 4, 5, u16::MAX] {
        let mut datagram = message.build();
        datagram[2..4].copy_from_slice(&count.to_be_bytes());
        let (mut decoder, mut out) = (decoder(DecodeConfig::default()), Batches::new());
        let outcome = decoder.decode(&datagram, &sender(1), &mut out);
        assert_eq!((outcome.rejected, outcome.sets_rejected), (None, 0), "{count}");
        assert_eq!(rows(&mut out.flows).len(), 3, "{count}");
    }
}

#[test]
fn rule_28_counters_are_kept_as_exported() {
    let record =
        |rate: u32| [&[10, 0, 0, 1][..], &[0, 0, 5, 220], &[0, 0, 0, 2], &rate.to_be_bytes()].concat();
    let message = |rate| Builder9::v9(0).template(256, VOLUME).set(256, &record(rate).repeat(3));
    for (already_scaled, rate, want, source) in [
        (false, 1_000, json!(1_000.0), "record"),
        // not a rate of nothing: unknown, and the counters stay
        (false, 0, Value::Null, "unknown"),
        (true, 1_000, json!(1.0), "override"),
    ] {
        let quirk = ExporterConfig { already_scaled, ..ExporterConfig::default() };
        let mut decoder = decoder(DecodeConfig { exporters: vec![quirk], ..DecodeConfig::default() });
        let all = decode(&mut decoder, &message(rate));
        // flows are not multiplied
        assert_eq!(all.len(), 3);
        assert_eq!(decoder.exporters().iter().next().unwrap().counters.flows, 3);
        for row in all {
            assert_eq!((&row["bytes"], &row["packets"]), (&json!(1_500), &json!(2)));
            assert_eq!(row.get("sampling_rate").unwrap_or(&Value::Null), &want);
            assert_eq!(row["sampling_source"], source);
        }
    }
}

#[test]
fn rule_39_rows_that_are_alike_are_all_kept() {
    let record = [10, 0, 0, 1, 0, 0, 5, 220, 0, 0, 0, 2, 0, 0, 0, 1];
    let message = |sequence| Builder9::v9(sequence).template(256, VOLUME).set(256, &record.repeat(2));
    let mut decoder = decoder(DecodeConfig::default());
    let mut all = decode(&mut decoder, &message(0));
    // the same datagram again, as a replicator may send it
    all.extend(decode(&mut decoder, &message(0)));
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|row| *row == all[0]));
}

#[test]
fn rule_47_as_numbers_and_next_hops_are_as_exported() {
    // two octets and four; AS_TRANS (RFC 6793) stays what the exporter said
    for (width, octets, want) in [
        (2, &[0x5b, 0xa0][..], 23_456_u32),
        (4, &[0, 0, 0x5b, 0xa0], 23_456),
        (4, &[0xff, 0, 0, 1], 0xff00_0001),
    ] {
        let fields = &[(16, width), (17, width), (15, 4)];
        let record = [octets, octets, &[0, 0, 0, 0]].concat();
        let mut decoder = decoder(DecodeConfig::default());
        let all = decode(&mut decoder, &Builder9::v9(0).template(256, fields).set(256, &record));
        assert_eq!((&all[0]["src_as"], &all[0]["dst_as"]), (&json!(want), &json!(want)));
        // that the route is connected is an answer, too
        assert_eq!(all[0]["next_hop"], "0.0.0.0");
        assert_eq!((all[0].get("prev_as"), all[0].get("next_as")), (None, None));
    }
    // origin and neighbour are different columns
    let fields = &[(16, 4), (129, 4), (128, 4)];
    let mut decoder = decoder(DecodeConfig::default());
    let message = Builder9::ipfix(0).template(256, fields).set(256, &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
    let all = decode(&mut decoder, &message);
    assert_eq!(
        (&all[0]["src_as"], &all[0]["prev_as"], &all[0]["next_as"]),
        (&json!(1), &json!(2), &json!(3))
    );
}

#[test]
fn rule_44_of_two_packets_in_a_record_the_outer_one() {
    let (six, four) = ([0x20; 16], [10, 0, 0, 1]);
    let fields = &[(27, 16), (4, 1), (8, 4), (4, 1)];
    let record = [&six[..], &[4], &four, &[6]].concat();
    let turned = &[(8, 4), (4, 1), (27, 16), (4, 1)];
    let other = [&four[..], &[41], &six, &[6]].concat();
    for (fields, record, addr, protocol) in
        [(fields, record, "2020:2020:2020:2020:2020:2020:2020:2020", 4), (turned, other, "10.0.0.1", 41)]
    {
        let mut decoder = decoder(DecodeConfig::default());
        let all = decode(&mut decoder, &Builder9::ipfix(0).template(256, fields).set(256, &record));
        assert_eq!((&all[0]["src_addr"], &all[0]["ip_protocol"]), (&json!(addr), &json!(protocol)));
        // and the other one is not lost
        assert_eq!(all[0]["extra"]["sourceIPv4Address"], "10.0.0.1");
    }
}
