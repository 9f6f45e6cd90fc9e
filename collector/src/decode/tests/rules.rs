//! The rules of decoding, one test each: bytes in, rows out.

use super::*;

/// A decoder with its batches.
struct Bench {
    decoder: Decoder,
    out: Batches,
}

type Row = Map<String, Value>;

impl Bench {
    fn new() -> Bench {
        Bench::with(DecodeConfig::default())
    }

    fn with(config: DecodeConfig) -> Bench {
        Bench { decoder: Decoder::new(Arc::new(config), Arc::default()), out: Batches::new() }
    }

    fn send(&mut self, message: &Builder9) -> Vec<Row> {
        self.send_from(message, &sender(50_000))
    }

    fn send_from(&mut self, message: &Builder9, meta: &DatagramMeta) -> Vec<Row> {
        let outcome = self.decoder.decode(&message.build(), meta, &mut self.out);
        assert_eq!(outcome.rejected, None);
        rows(&mut self.out.flows)
    }

    fn counters(&self) -> Counters {
        self.decoder.exporters().iter().next().unwrap().counters
    }

    fn events(&mut self) -> Vec<String> {
        self.decoder.report(0, &mut self.out);
        let events = rows(&mut self.out.exporter_events);
        events.iter().map(|row| row["event"].as_str().unwrap().to_owned()).collect()
    }
}

/// The one row that a template and its record give.
fn one(message: Builder9, fields: &[(u16, u16)], record: &[u8]) -> Row {
    let all = Bench::new().send(&message.template(256, fields).set(256, record));
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

const PORTS: &[(u16, u16)] = &[(7, 2), (11, 2)];

#[test]
fn rule_02_an_unknown_set_does_not_cost_the_others() {
    let message = Builder9::ipfix(0).set(5, &[1, 2]).template(256, PORTS).set(999, &[0; 8]);
    let mut bench = Bench::new();
    assert_eq!(bench.send(&message.set(256, &[0, 1, 0, 2])).len(), 1);
    assert_eq!(bench.counters().template_misses, 1);
}

#[test]
fn rule_03_rule_04_padding_of_any_content_is_no_record() {
    for padding in [&[][..], &[0], &[0xff, 0xff, 0xff]] {
        for message in [Builder9::v9(0), Builder9::ipfix(0)] {
            let record = [&[0, 1, 0, 2][..], padding].concat();
            assert_eq!(one(message, PORTS, &record)["dst_port"], 2);
        }
    }
}

#[test]
fn rule_06_variable_length_in_both_forms_and_nothing_else() {
    let fields = &[(371, 0xffff), (7, 2), (82, 0xffff)];
    let mut bench = Bench::new();
    let records = [&[3][..], b"bob", &[0, 9, 255, 0, 2], b"e1", &[255, 0, 0, 0, 8, 0]].concat();
    let all = bench.send(&Builder9::ipfix(0).template(256, fields).set(256, &records));
    assert_eq!(all.len(), 2);
    assert_eq!((&all[0]["user_name"], &all[0]["src_port"]), (&json!("bob"), &json!(9)));
    assert_eq!(all[0]["extra"]["interfaceName"], "e1");
    assert_eq!((all[1].get("user_name"), &all[1]["src_port"]), (None, &json!(8)));
    let shortest = bench.send(&Builder9::ipfix(2).template(257, &[(82, 0xffff)]).set(257, &[0, 1, b'x', 0]));
    assert_eq!(shortest.len(), 3);
}

#[test]
fn rule_07_withdrawals_are_not_followed() {
    let mut bench = Bench::new();
    bench.send(&Builder9::ipfix(0).template(256, PORTS));
    bench.send(&Builder9::ipfix(0).set(2, &bytes(&[256, 0, 2, 0])));
    assert_eq!(bench.send(&Builder9::ipfix(0).set(256, &[0, 1, 0, 2])).len(), 1);
    assert_eq!(bench.events().iter().filter(|event| *event == "withdrawal_ignored").count(), 2);
}

#[test]
fn rule_08_rule_10_the_last_definition_owns_the_id() {
    let mut bench = Bench::new();
    bench.send(&Builder9::v9(0).template(256, PORTS));
    bench.send(&Builder9::v9(1).template(256, PORTS));
    assert!(!bench.events().contains(&"template_collision".to_owned()));
    let swapped = &[(11, 2), (7, 2)];
    let all = bench.send(&Builder9::v9(2).template(256, swapped).set(256, &[0, 1, 0, 2]));
    assert_eq!(all[0]["dst_port"], 1);
    assert!(bench.events().contains(&"template_collision".to_owned()));
    // an options template takes the id from the data template
    bench.send(&Builder9::v9(3).options(256, 1, &[(1, 2), (34, 2)]).set(256, &[0, 1, 0, 2]));
    assert_eq!(rows(&mut bench.out.options).len(), 1);
}

#[test]
fn rule_09_two_exporters_behind_one_address_do_not_mix() {
    let mut bench = Bench::new();
    bench.send_from(&Builder9::v9(0).template(256, PORTS), &sender(1));
    bench.send_from(&Builder9::v9(900).template(256, &[(11, 2), (7, 2)]), &sender(2));
    let data = |sequence| Builder9::v9(sequence).set(256, &[0, 1, 0, 2]);
    assert_eq!(bench.send_from(&data(1), &sender(1))[0]["src_port"], 1);
    assert_eq!(bench.send_from(&data(901), &sender(2))[0]["src_port"], 2);
    assert_eq!(bench.counters().sequence_lost, 0);
    // a third port, and the two disagree: nobody knows which it is
    assert!(bench.send_from(&data(5_000), &sender(3)).is_empty());
}

#[test]
fn rule_09_a_second_exporter_does_not_decode_by_the_templates_of_the_first() {
    let at = |port: u16, ms: i64| {
        let meta = sender(port);
        DatagramMeta { received_us: meta.received_us + ms * 1_000, ..meta }
    };
    let data = |sequence| Builder9::ipfix(sequence).set(256, &[0, 1, 0, 2]);
    let options = |rate| {
        let message = Builder9::ipfix(0).template(256, PORTS).options(300, 1, &[(149, 4), (34, 4)]);
        message.set(300, &[0, 0, 0, 7, 0, 0, 0, rate])
    };
    let mut bench = Bench::new();
    bench.send_from(&options(10), &at(1, 0));
    assert!(bench.send_from(&data(700), &at(2, 10)).is_empty(), "it waits for its own template");
    let swapped = Builder9::ipfix(701).template(256, &[(11, 2), (7, 2)]);
    let row = bench.send_from(&swapped, &at(2, 20)).remove(0);
    assert_eq!((&row["src_port"], &row["sampling_source"]), (&json!(2), &json!("unknown")));
    let row = bench.send_from(&data(1), &at(1, 30)).remove(0);
    assert_eq!((&row["src_port"], &row["sampling_rate"]), (&json!(1), &json!(10.0)));
    // an exporter that was silent for a while may be back from another port: all it said holds
    let mut bench = Bench::new();
    bench.send_from(&options(10), &at(1, 0));
    let row = bench.send_from(&data(700), &at(2, 30_000)).remove(0);
    assert_eq!((&row["src_port"], &row["sampling_rate"]), (&json!(1), &json!(10.0)));
}

#[test]
fn rule_09_an_exporter_may_change_its_port() {
    let mut bench = Bench::new();
    bench.send_from(&Builder9::v9(0).template(256, PORTS), &sender(1));
    for port in 2..100 {
        let all = bench.send_from(&Builder9::v9(u32::from(port) - 1).set(256, &[0, 1, 0, 2]), &sender(port));
        assert_eq!(all.len(), 1);
    }
    let counters = bench.counters();
    assert_eq!((counters.sequence_expected, counters.sequence_lost), (99, 0));
}

#[test]
fn rule_11_an_expired_template_decodes_no_more() {
    let config = DecodeConfig { template_lifetime_seconds: 100, ..DecodeConfig::default() };
    let mut bench = Bench::with(config);
    let at = |second: i64| {
        let meta = sender(1);
        DatagramMeta { received_us: meta.received_us + second * 1_000_000, ..meta }
    };
    let template = Builder9::v9(0).template(256, PORTS);
    bench.send_from(&template, &at(0));
    // refreshed every 80 s: lives for 240 s
    bench.send_from(&template, &at(80));
    let data = Builder9::v9(1).set(256, &[0, 1, 0, 2]);
    bench.decoder.tick(at(80 + 240).received_us, &mut bench.out);
    assert_eq!(bench.send_from(&data, &at(320)).len(), 1);
    bench.decoder.tick(at(400).received_us, &mut bench.out);
    assert_eq!(bench.send_from(&data, &at(400)).len(), 0);
    assert_eq!(bench.decoder.shared().templates(), 0);
}

#[test]
fn rule_12_a_restart_discards_the_templates() {
    let after = |sequence: u32| Builder9 {
        uptime_ms: 1_000 + sequence,
        export_s: EXPORT_S + 60,
        ..Builder9::v9(sequence)
    };
    let mut bench = Bench::new();
    bench.send(&Builder9::v9(500).template(256, PORTS).template(257, PORTS));
    // the first datagram says so: what it describes itself is believed, what came before waits
    let mut later = {
        let mut seconds = 0;
        move |bench: &mut Bench, message: &Builder9| {
            seconds += 1;
            let meta = sender(50_000);
            let received_us = meta.received_us + seconds * 1_000_000;
            bench.send_from(message, &DatagramMeta { received_us, ..meta })
        }
    };
    let first = after(0).template(257, &[(11, 2), (7, 2)]).set(256, &[0, 1, 0, 2]).set(257, &[0, 1, 0, 2]);
    let all = later(&mut bench, &first);
    assert_eq!((all.len(), &all[0]["dst_port"]), (1, &json!(1)));
    assert_eq!(bench.counters().sequence_resets, 0);
    // the second one too
    assert!(later(&mut bench, &after(1).set(256, &[0, 1, 0, 2])).is_empty());
    assert_eq!(later(&mut bench, &after(2).set(257, &[0, 1, 0, 2]))[0]["dst_port"], 1);
    let counters = bench.counters();
    assert_eq!((counters.sequence_resets, counters.sequence_lost, counters.sequence_expected), (1, 0, 4));
    assert!(bench.events().contains(&"restart".to_owned()));
    // the new template 256, and what waited for it
    assert_eq!(later(&mut bench, &after(3).template(256, PORTS)).len(), 2);
    // an uptime that wraps is none
    let mut bench = Bench::new();
    bench.send(&Builder9 { uptime_ms: u32::MAX, ..Builder9::v9(1).template(256, PORTS) });
    assert_eq!(bench.send(&Builder9 { uptime_ms: 5, ..Builder9::v9(2).set(256, &[0, 1, 0, 2]) }).len(), 1);
}

#[test]
fn rule_13_data_waits_for_its_template_with_its_own_receive_time() {
    let mut bench = Bench::new();
    let early = DatagramMeta { received_us: sender(1).received_us - 7_000_000, ..sender(1) };
    assert!(bench.send_from(&Builder9::ipfix(0).set(256, &[0, 1, 0, 2]), &early).is_empty());
    let all = bench.send_from(&Builder9::ipfix(1).template(256, PORTS), &sender(1));
    assert_eq!(all[0]["received_at"], early.received_us);
    let counters = bench.counters();
    assert_eq!((counters.template_misses, counters.sets_replayed, counters.sets_expired), (1, 1, 0));
    bench.send_from(&Builder9::ipfix(1).set(300, &[0; 9]), &sender(1));
    bench.decoder.tick(sender(1).received_us + 61_000_000, &mut bench.out);
    assert_eq!(bench.counters().sets_expired, 1);
}

#[test]
fn a_clock_that_is_set_makes_no_template_old_and_gives_up_nothing_that_waits() {
    for (step, hours) in [(7_200_000_000_i64, 2), (-7_200_000_000, -2)] {
        let (mut bench, start, t0) = (Bench::new(), std::time::Instant::now(), sender(1).received_us);
        let mind = |bench: &mut Bench, seconds: u64, now_us: i64| {
            bench.decoder.mind_clock(start + std::time::Duration::from_secs(seconds), now_us);
            bench.decoder.tick(now_us, &mut bench.out);
        };
        mind(&mut bench, 0, t0);
        bench.send_from(&Builder9::ipfix(0).template(256, PORTS), &sender(1));
        bench.send_from(&Builder9::ipfix(0).set(300, &[0, 1, 0, 2]), &sender(1));
        let set = t0 + step;
        for second in 1..70 {
            mind(&mut bench, second, set + second as i64 * 1_000_000);
        }
        let meta = DatagramMeta { received_us: set + 70_000_000, ..sender(1) };
        let rows = bench.send_from(&Builder9::ipfix(1).set(256, &[0, 1, 0, 2]), &meta);
        assert_eq!(rows.len(), 1, "set by {hours} h");
        // what waits, waits as long as ever
        assert_eq!(bench.counters().sets_expired, 1, "set by {hours} h");
        let (mut bench, now_us) = (Bench::new(), t0);
        mind(&mut bench, 0, now_us);
        bench.send_from(&Builder9::ipfix(0).set(300, &[0, 1, 0, 2]), &sender(1));
        mind(&mut bench, 1, now_us + step + 1_000_000);
        assert_eq!(bench.counters().sets_expired, 0, "set by {hours} h");
    }
}

#[test]
fn rule_14_of_a_repeated_element_the_first_counts_and_the_rest_is_kept() {
    let row = one(Builder9::ipfix(0), &[(7, 2), (7, 2), (7, 2)], &[0, 1, 0, 2, 0, 3]);
    assert_eq!(row["src_port"], 1);
    let extra = json!({"sourceTransportPort[2]": "2", "sourceTransportPort[3]": "3"});
    assert_eq!(row["extra"], extra);
}

#[test]
fn rule_19_rule_20_ipfix_counts_records_and_unknown_sets_are_uncertain() {
    let mut bench = Bench::new();
    let data = |sequence, records: &[u8]| Builder9::ipfix(sequence).set(256, records);
    bench.send(&Builder9::ipfix(100).template(256, PORTS));
    bench.send(&data(100, &[0; 12]));
    bench.send(&data(103, &[0; 4]));
    assert_eq!(bench.counters().sequence_lost, 0);
    bench.send(&data(109, &[0; 4]));
    assert_eq!(bench.counters().sequence_lost, 5);
    bench.send(&data(110, &[0; 4]).set(999, &[0; 40]));
    bench.send(&data(500, &[0; 4]));
    let counters = bench.counters();
    assert_eq!((counters.sequence_lost, counters.sequence_uncertain), (5, 1));
    // options data records count
    let options = Builder9::ipfix(501).options(300, 1, &[(149, 4), (41, 4)]).set(300, &[0; 16]);
    bench.send(&options);
    bench.send(&data(503, &[0; 4]));
    assert_eq!(bench.counters().sequence_lost, 5);
}

#[test]
fn rule_36_a_direction_that_is_not_exported_is_unknown() {
    let row = one(Builder9::v9(0), PORTS, &[0, 1, 0, 2]);
    assert_eq!(row.get("direction"), None);
    for direction in [0, 1] {
        assert_eq!(one(Builder9::v9(0), &[(61, 1)], &[direction])["direction"], direction);
    }
}

#[test]
fn rule_48_events_without_a_number_are_told_by_their_times() {
    let fields = |time: u16| [(time, 8), (8, 4), (225, 4), (227, 2), (4, 1)];
    let record = [&(EXPORT_US / 1_000).to_be_bytes()[..], &[10, 0, 0, 1, 192, 0, 2, 7, 4, 0, 17]].concat();
    for (time, event) in [(152, 1), (153, 2)] {
        let mut bench = Bench::new();
        let message = Builder9::ipfix(0).template(256, &fields(time)).set(256, &record);
        assert!(bench.send(&message).is_empty());
        let row = rows(&mut bench.out.nat_events).remove(0);
        assert_eq!((&row["nat_event"], &row["nat_src_port"]), (&json!(event), &json!(1_024)));
        assert_eq!(row[if event == 1 { "start_time" } else { "end_time" }], EXPORT_US);
    }
    // with both times, or a volume, it is no such event
    let both = [(152, 8), (153, 8), (225, 4)];
    let record = [&(EXPORT_US / 1_000).to_be_bytes().repeat(2)[..], &[192, 0, 2, 7]].concat();
    let mut bench = Bench::new();
    bench.send(&Builder9::ipfix(0).template(256, &both).set(256, &record));
    assert_eq!(rows(&mut bench.out.nat_events)[0].get("nat_event"), None);
    let row = one(Builder9::ipfix(0), &[(225, 4), (1, 4)], &[192, 0, 2, 7, 0, 0, 0, 1]);
    assert_eq!((&row["nat_src_addr"], row.get("nat_event")), (&json!("192.0.2.7"), None));
}

#[test]
fn rule_48_port_blocks_are_events() {
    let fields = &[(230, 1), (8, 4), (225, 4), (361, 2), (362, 2), (363, 2), (364, 2)];
    let record = [16, 10, 0, 0, 1, 192, 0, 2, 7, 4, 0, 7, 255, 0, 1, 4, 0];
    let mut bench = Bench::new();
    bench.send(&Builder9::ipfix(0).template(256, fields).set(256, &record));
    let row = rows(&mut bench.out.nat_events).remove(0);
    let names = ["nat_event", "port_block_start", "port_block_end", "port_block_step", "port_block_size"];
    assert_eq!(names.map(|name| row[name].as_u64().unwrap()), [16, 1_024, 2_047, 1, 1_024]);
}

#[test]
fn rule_35_options_data_names_the_exporter_of_flows_options_and_statistics() {
    let options =
        Builder9::ipfix(0).options(300, 1, &[(149, 4), (130, 4)]).set(300, &[0, 0, 0, 7, 10, 9, 8, 7]);
    let message = options.template(256, PORTS).set(256, &[0, 1, 0, 2]);
    for (identity, want) in [
        (vec![IdentitySource::Agent, IdentitySource::Element, IdentitySource::Sender], "10.9.8.7"),
        (vec![IdentitySource::Sender], "192.0.2.1"),
        (vec![], "192.0.2.1"),
    ] {
        let mut bench = Bench::with(DecodeConfig { identity, ..DecodeConfig::default() });
        let row = bench.send(&message).remove(0);
        assert_eq!((&row["exporter_addr"], &row["agent_addr"]), (&json!(want), &json!("10.9.8.7")));
        bench.decoder.report(1, &mut bench.out);
        let [stats, events] = [&mut bench.out.exporter_stats, &mut bench.out.exporter_events].map(rows);
        assert_eq!(
            (&stats[0]["exporter_addr"], &stats[0]["sender_addr"]),
            (&json!(want), &json!("192.0.2.1"))
        );
        // the first event came before anybody knew
        assert_eq!(events[0]["exporter_addr"], "192.0.2.1");
        bench.send(&message);
        assert!(rows(&mut bench.out.options).iter().skip(1).all(|row| row["exporter_addr"] == want));
    }
}

#[test]
fn rule_07_rule_08_a_spoofed_source_changes_nothing_for_longer_than_a_refresh() {
    let mut bench = Bench::new();
    let owner = |sequence| Builder9::v9(sequence).template(256, PORTS);
    let data = |sequence| Builder9::v9(sequence).set(256, &[0, 1, 0, 2]);
    let at = |second: i64| {
        let meta = sender(1);
        DatagramMeta { received_us: meta.received_us + second * 1_000_000, ..meta }
    };
    for n in 0..10 {
        bench.send_from(&owner(n), &at(i64::from(n)));
    }
    // from the owner's address and port: another template under its id, a withdrawal, a restart, many other ids
    bench.send_from(&Builder9::v9(10).template(256, &[(11, 2), (7, 2)]), &at(10));
    bench.send_from(&Builder9 { uptime_ms: 5, ..Builder9::v9(0) }, &at(10));
    for n in 0..30_u16 {
        let many = (0..80).fold(Builder9::v9(11), |message, k| message.template(1_000 + n * 80 + k, PORTS));
        bench.send_from(&many, &at(10));
    }
    // from its address and other ports
    for port in 100..200 {
        bench.send_from(&Builder9::v9(0).template(256, &[(11, 2), (7, 2)]), &at(10));
        bench.send_from(
            &Builder9::v9(77).template(256, &[(11, 2), (7, 2)]),
            &DatagramMeta { sender_port: port, ..at(10) },
        );
    }
    assert_eq!(bench.send_from(&data(11), &at(11))[0]["dst_port"], 1, "poisoned until the next refresh");
    bench.send_from(&owner(12).template(700, PORTS), &at(12));
    assert_eq!(bench.send_from(&data(13), &at(13))[0]["dst_port"], 2, "which restores it");
    let new = Builder9::v9(14).set(700, &[0, 1, 0, 2]);
    assert_eq!(bench.send_from(&new, &at(14)).len(), 1, "and there is room for what is new");
    let counters = bench.counters();
    assert!(counters.template_collisions >= 2 && counters.sequence_resets == 0, "{counters:?}");
}

#[test]
fn a_user_file_names_elements_and_their_columns() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine.tsv");
    let text = "4242\t1\tmyTenant\tstring\t-\t-\tuser_name\n\
        4242\t2\tmyLatency\tunsigned32\t-\tmilliseconds\trtt_us\n\
        4242\t3\tmySource\tipv4Address\t-\t-\tsrc_addr\n\
        4242\t4\tmyColour\tunsigned8\n";
    std::fs::write(&path, text).unwrap();
    let config = DecodeConfig { elements: vec![path], ..DecodeConfig::default() };
    assert!(config.problems().is_empty());
    let mut bench = Bench::with(config.clone());
    let field = |id: u16, length: u16| [0x8000 | id, length, 0, 4242];
    let words = [&[256, 6][..], &field(1, 0xffff), &field(2, 4), &field(3, 4), &field(4, 1), &[8, 4, 371, 2]];
    let template = Builder9::ipfix(0).set(2, &bytes(&words.concat()));
    let record = [2, b'a', b'b', 0, 0, 0, 5, 10, 0, 0, 1, 9, 10, 0, 0, 2, b'x', b'y'];
    // before it is there, all goes to extra
    let row = bench.send(&template.clone().set(256, &record)).remove(0);
    assert_eq!((&row["user_name"], &row["extra"]["4242:2"]), (&json!("xy"), &json!("0x00000005")));
    bench.decoder.shared().set_dictionary(config.dictionary().unwrap());
    let row = bench.send(&Builder9::ipfix(1).set(256, &record)).remove(0);
    assert_eq!((&row["user_name"], &row["rtt_us"]), (&json!("ab"), &json!(5_000)), "the user's goes first");
    assert_eq!(row["src_addr"], "10.0.0.1");
    let extra = &row["extra"];
    assert_eq!((&extra["myColour"], &extra["sourceIPv4Address"]), (&json!("9"), &json!("10.0.0.2")));
    assert_eq!(extra["userName"], "xy");
}

#[test]
fn lists_of_records_are_written_with_the_names_of_their_elements() {
    // template 257 is a part of the lists of 256: a subTemplateList and a subTemplateMultiList (RFC 6313)
    let templates = Builder9::ipfix(0)
        .template(257, &[(7, 2), (82, 0xffff)])
        .template(256, &[(292, 0xffff), (293, 0xffff)]);
    let inner = [0, 80, 2, b'e', b'1'];
    let list = [&[3, 1, 1][..], &inner, &inner].concat();
    let multi = [&[3][..], &[1, 1, 0, 9], &inner, &[9, 9, 0, 6, 7, 7]].concat();
    let record = [&[list.len() as u8][..], &list, &[multi.len() as u8], &multi].concat();
    let row = Bench::new().send(&templates.set(256, &record)).remove(0);
    let one = r#"{"sourceTransportPort":80,"interfaceName":"e1"}"#;
    assert_eq!(
        row["extra"],
        json!({
            "subTemplateList": format!("[{one},{one}]"),
            "subTemplateMultiList": format!(r#"[{one},{{"template":2313,"octets":"0x0707"}}]"#),
        })
    );
}

#[test]
fn rule_24_the_surest_rate_wins() {
    let rate = |row: &Row| (row.get("sampling_rate").and_then(Value::as_f64), row["sampling_source"].clone());
    let flow = &[(10, 4), (48, 1), (34, 4)];
    let record = |interface: u8, sampler: u8, interval: u8| [0, 0, 0, interface, sampler, 0, 0, 0, interval];
    let mut bench = Bench::new();
    let system = Builder9::v9(0).options(300, 1, &[(1, 4), (34, 4)]).set(300, &[0, 0, 0, 1, 0, 0, 0, 100]);
    let by_interface = system.options(301, 1, &[(2, 4), (34, 4)]).set(301, &[0, 0, 0, 5, 0, 0, 0, 50]);
    let sampler = by_interface.options(302, 1, &[(1, 4), (48, 1), (50, 4)]);
    bench.send(&sampler.set(302, &[0, 0, 0, 1, 3, 0, 0, 0, 30]));
    let records = [record(5, 3, 20), record(5, 3, 0), record(5, 9, 0), record(6, 9, 0)].concat();
    let message = Builder9::v9(1).template(256, flow).set(256, &records);
    let found: Vec<_> = bench.send(&message).iter().map(rate).collect();
    let want = [(20.0, "record"), (30.0, "sampler"), (50.0, "interface"), (100.0, "system")];
    assert_eq!(found, want.map(|(rate, source)| (Some(rate), json!(source))));
    let unknown = one(Builder9::v9(0), flow, &record(6, 9, 0));
    assert_eq!(rate(&unknown), (None, json!("unknown")));
    let forced = ExporterConfig { sampling_rate: Some(7.0), ..ExporterConfig::default() };
    let config = DecodeConfig { exporters: vec![forced], ..DecodeConfig::default() };
    let all = Bench::with(config).send(&message);
    assert_eq!(rate(&all[0]), (Some(7.0), json!("override")));
    let config = DecodeConfig { default_sampling_rate: Some(9.0), ..DecodeConfig::default() };
    let all = Bench::with(config).send(&message);
    assert_eq!(rate(&all[1]), (Some(9.0), json!("configured")));
}

#[test]
fn rule_25_rates_in_a_record_are_ratios() {
    let row = one(Builder9::ipfix(0), &[(305, 4), (306, 4)], &[0, 0, 0, 2, 0, 0, 0, 3]);
    assert_eq!(row["sampling_rate"], 2.5);
    let row = one(Builder9::ipfix(0), &[(311, 8)], &0.01_f64.to_be_bytes());
    assert_eq!(row["sampling_rate"], 100.0);
}

#[test]
fn rule_27_options_after_the_data_and_little_endian_rates() {
    let options = |message: Builder9, rate: &[u8]| {
        message.options(300, 1, &[(1, 4), (34, 4)]).set(300, &[&[0, 0, 0, 1][..], rate].concat())
    };
    let message = Builder9::v9(0).set(256, &[0, 1, 0, 2]).template(256, PORTS);
    let all = Bench::new().send(&options(message.clone(), &[0, 0, 0, 10]));
    assert_eq!(all[0]["sampling_rate"], 10.0);
    let quirk = ExporterConfig { little_endian_sampling: true, ..ExporterConfig::default() };
    let config = DecodeConfig { exporters: vec![quirk], ..DecodeConfig::default() };
    let all = Bench::with(config).send(&options(message, &[10, 0, 0, 0]));
    assert_eq!(all[0]["sampling_rate"], 10.0);
}

#[test]
fn rule_27_options_of_another_domain_only_where_it_is_asked_for() {
    for (across, want) in [(false, None), (true, Some(10.0))] {
        let quirk = ExporterConfig { sampling_across_domains: across, ..ExporterConfig::default() };
        let mut bench = Bench::with(DecodeConfig { exporters: vec![quirk], ..DecodeConfig::default() });
        let options = Builder9 { domain: 1, ..Builder9::v9(0) }.options(300, 1, &[(1, 4), (34, 4)]);
        bench.send(&options.set(300, &[0, 0, 0, 1, 0, 0, 0, 10]));
        let all = bench.send(&Builder9::v9(0).template(256, PORTS).set(256, &[0, 1, 0, 2]));
        assert_eq!(all[0].get("sampling_rate").and_then(Value::as_f64), want);
    }
}

/// µs of the header's clock.
const EXPORT_US: i64 = EXPORT_S as i64 * 1_000_000;

#[test]
fn rule_30_uptimes_are_signed_and_wrap() {
    let times = |uptime_ms: u32, start: u32, end: u32| {
        let record = [start.to_be_bytes(), end.to_be_bytes()].concat();
        let row = one(Builder9 { uptime_ms, ..Builder9::v9(0) }, &[(22, 4), (21, 4)], &record);
        [&row["start_time"], &row["end_time"]].map(|time| (time.as_i64().unwrap() - EXPORT_US) / 1_000)
    };
    assert_eq!(times(10_000, 4_000, 9_999), [-6_000, -1]);
    assert_eq!(times(1_000, u32::MAX - 999, 1_500), [-2_000, 500]);
}

#[test]
fn rule_31_each_clock_by_its_own_unit() {
    let ntp = |us: i64| {
        let seconds = (us / 1_000_000 + 2_208_988_800) as u64;
        let fraction = ((us % 1_000_000) as u64 * (1 << 32)).div_ceil(1_000_000);
        (seconds << 32 | fraction).to_be_bytes()
    };
    let us = EXPORT_US - 3_500_000;
    let start = |id: u16, bytes: &[u8]| {
        let row = one(Builder9::ipfix(0), &[(id, bytes.len() as u16)], bytes);
        assert_eq!(row["time_source"], "flow", "{id}");
        row["start_time"].as_i64().unwrap()
    };
    assert_eq!(start(150, &(EXPORT_S - 3).to_be_bytes()), EXPORT_US - 3_000_000);
    assert_eq!(start(152, &(us / 1_000).to_be_bytes()), us);
    assert_eq!(start(154, &ntp(us)), us);
    assert_eq!(start(156, &ntp(us)), us);
    assert_eq!(start(158, &3_500_000_u32.to_be_bytes()), us);
    // uptime without boot time: no time, and the element is kept
    let row = one(Builder9::ipfix(0), &[(22, 4), (21, 4)], &[0, 0, 0, 9, 0, 0, 0, 10]);
    assert_eq!((row.get("start_time"), &row["time_source"]), (None, &json!("received")));
    assert_eq!(row["extra"]["flowStartSysUpTime"], "9");
    // with it, in the record
    let boot = [&(us / 1_000).to_be_bytes()[..], &[0, 0, 3, 0xe8]].concat();
    assert_eq!(one(Builder9::ipfix(0), &[(160, 8), (22, 4)], &boot)["start_time"], us + 1_000_000);
}

#[test]
fn rule_32_numbers_may_be_shorter_and_longer_than_their_column() {
    let fields = &[(1, 3), (2, 5), (89, 4), (10, 2), (6, 1)];
    let record = [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 64, 0, 7, 0x12];
    let row = one(Builder9::ipfix(0), fields, &record);
    assert_eq!((&row["bytes"], &row["packets"]), (&json!(65_536), &json!(256)));
    assert_eq!((&row["forwarding_status"], &row["in_if"]), (&json!(64), &json!(7)));
    assert_eq!(row["tcp_flags"], 0x12);
    // a value beyond the column is not cut
    let row = one(Builder9::ipfix(0), &[(89, 4)], &[0, 1, 0, 64]);
    assert_eq!((row.get("forwarding_status"), &row["extra"]["forwardingStatus"]), (None, &json!("65600")));
}

#[test]
fn rule_33_times_that_cannot_be_give_way_to_the_receive_time() {
    let received = sender(1).received_us;
    let times = |start: i64, end: i64| {
        let record = [(start / 1_000).to_be_bytes(), (end / 1_000).to_be_bytes()].concat();
        let row = one(Builder9::ipfix(0), &[(152, 8), (153, 8)], &record);
        let time = |name: &str| row.get(name).map(|time| time.as_i64().unwrap());
        (time("start_time"), time("end_time"), row["time_source"].as_str().unwrap().to_owned())
    };
    let day = 86_400_000_000;
    let good = EXPORT_US - 1_000_000;
    assert_eq!(times(good, EXPORT_US), (Some(good), Some(EXPORT_US), "flow".into()));
    assert_eq!(times(good - 30 * day, good + day), (Some(received), Some(received), "received".into()));
    assert_eq!(times(good, good + day), (Some(good), Some(received), "received".into()));
    assert_eq!(times(good - 30 * day, good), (Some(good), Some(good), "received".into()));
    assert_eq!(times(0, 0), (None, None, "received".into()));
    // what the exporter said is kept, of those records that need it
    let times = |start: i64, end: i64| [(start / 1_000).to_be_bytes(), (end / 1_000).to_be_bytes()].concat();
    let records = [times(good, EXPORT_US), times(0, EXPORT_US + 400 * day)].concat();
    let message = Builder9::ipfix(0).template(256, &[(152, 8), (153, 8)]).set(256, &records);
    let all = Bench::new().send(&message);
    assert_eq!((all[0].get("extra"), &all[0]["time_source"]), (None, &json!("flow")));
    assert_eq!(all[1]["extra"], json!({"exported_end_time": "2024-12-18T22:13:20.000Z"}));
}

#[test]
fn rule_33_the_skew_of_an_exporter_is_in_its_statistics() {
    let mut bench = Bench::new();
    for (behind_s, want) in [(0, 250_000.0), (90, 90_250_000.0)] {
        let export_s = EXPORT_S - behind_s;
        bench.send(&Builder9 { export_s, ..Builder9::ipfix(0) });
        bench.decoder.report(1, &mut bench.out);
        let stats = rows(&mut bench.out.exporter_stats);
        assert_eq!(stats[0]["clock_skew_us"], want);
    }
}

#[test]
fn rule_35_the_exporter_is_who_the_record_says_it_is() {
    let record = [10, 9, 8, 7, 0, 80];
    let message = Builder9::ipfix(0).template(256, &[(130, 4), (7, 2)]).set(256, &record);
    let all = Bench::new().send(&message);
    assert_eq!((&all[0]["exporter_addr"], &all[0]["sender_addr"]), (&json!("10.9.8.7"), &json!("192.0.2.1")));
    assert_eq!(all[0]["agent_addr"], "10.9.8.7");
    let identity = vec![IdentitySource::Sender, IdentitySource::Element];
    let all = Bench::with(DecodeConfig { identity, ..DecodeConfig::default() }).send(&message);
    assert_eq!((&all[0]["exporter_addr"], all[0].get("sender_addr")), (&json!("192.0.2.1"), None));
}

#[test]
fn rule_37_of_several_counters_one_is_taken() {
    let fields = &[(1, 4), (23, 4), (85, 4), (231, 4), (232, 4)];
    let record = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5];
    let row = one(Builder9::ipfix(0), fields, &record);
    assert_eq!(
        (&row["bytes"], &row["initiator_bytes"], &row["responder_bytes"]),
        (&json!(1), &json!(4), &json!(5))
    );
    assert_eq!(row["extra"], json!({"postOctetDeltaCount": "2", "octetTotalCount": "3"}));
    assert_eq!(one(Builder9::ipfix(0), &[(85, 4)], &[0, 0, 0, 3])["bytes"], 3);
}

#[test]
fn rule_37_cumulative_totals_are_differenced_where_the_operator_says_so() {
    let fields = &[(8, 4), (12, 4), (22, 4), (85, 8), (86, 4)];
    let record = |source: u8, start: u8, bytes: u64, packets: u8| {
        [&[10, 0, 0, source, 10, 0, 0, 9, 0, 0, 0, start][..], &bytes.to_be_bytes(), &[0, 0, 0, packets]]
            .concat()
    };
    let records = [
        record(1, 5, 100, 1),
        record(2, 5, 700, 7),
        record(1, 5, 350, 3),
        // the same addresses, another flow
        record(1, 6, 360, 4),
        // nothing new; and a counter that began anew
        record(2, 5, 700, 7),
        record(1, 5, 40, 1),
    ];
    let message = Builder9::v9(0).template(256, fields).set(256, &records.concat());
    let counts = |config: DecodeConfig| {
        let all = Bench::with(config).send(&message);
        all.iter().map(|row| ["bytes", "packets"].map(|name| row[name].as_u64().unwrap())).collect::<Vec<_>>()
    };
    let as_exported = [[100, 1], [700, 7], [350, 3], [360, 4], [700, 7], [40, 1]];
    assert_eq!(counts(DecodeConfig::default()), as_exported);
    let cumulative = ExporterConfig { difference_totals: true, ..ExporterConfig::default() };
    let config = DecodeConfig { exporters: vec![cumulative], ..DecodeConfig::default() };
    assert_eq!(counts(config.clone()), [[100, 1], [700, 7], [250, 2], [360, 4], [0, 0], [40, 1]]);
    // deltas are deltas
    let row = Bench::with(config)
        .send(&Builder9::v9(0).template(256, &[(1, 4), (85, 4)]).set(256, &[0, 0, 0, 1, 0, 0, 0, 9]));
    assert_eq!(row[0]["bytes"], 1);
}

#[test]
fn rule_38_the_other_direction_of_a_biflow_is_a_row_of_its_own() {
    let mut words = bytes(&[256, 7, 8, 4, 12, 4, 7, 2, 11, 2, 2, 4]);
    words.extend(bytes(&[0x8000 | 2, 4, 0, 29_305, 0x8000 | 1, 4, 0, 29_305]));
    let record = |reverse: u8| {
        [&[10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0, 80, 0, 0, 0, 5][..], &[0, 0, 0, reverse, 0, 0, 1, 0]]
            .concat()
    };
    let records = [record(3), record(0)].concat();
    let all = Bench::new().send(&Builder9::ipfix(0).set(2, &words).set(256, &records));
    assert_eq!(all.len(), 3, "the reverse of no packets is no record");
    let reverse = &all[2];
    assert_eq!((&all[0]["packets"], all[0].get("bytes"), all[0].get("reverse")), (&json!(5), None, None));
    assert_eq!((&reverse["src_addr"], &reverse["dst_addr"]), (&json!("10.0.0.2"), &json!("10.0.0.1")));
    assert_eq!((&reverse["src_port"], &reverse["dst_port"]), (&json!(80), &json!(12_345)));
    assert_eq!(
        (&reverse["packets"], &reverse["bytes"], &reverse["reverse"]),
        (&json!(3), &json!(256), &json!(true))
    );
}

#[test]
fn rule_42_all_ones_of_medianet_is_unknown() {
    let set = bytes(&[256, 2, 7, 2, 0x8000 | 4_251, 4, 0, 9]);
    let record = [0, 1, 0xff, 0xff, 0xff, 0xff, 0, 2, 0, 0, 0, 4];
    let all = Bench::new().send(&Builder9::ipfix(0).set(2, &set).set(256, &record));
    assert_eq!((all[0].get("lost_packets"), &all[1]["lost_packets"]), (None, &json!(4)));
}

#[test]
fn rule_43_icmp_in_the_destination_port() {
    let fields = &[(4, 1), (7, 2), (11, 2)];
    let icmp = |message: Builder9, record: &[u8]| {
        let row = one(message, fields, record);
        ["icmp_type", "icmp_code"].map(|name| row.get(name).and_then(Value::as_u64))
    };
    assert_eq!(icmp(Builder9::v9(0), &[1, 0, 0, 3, 1]), [Some(3), Some(1)]);
    assert_eq!(icmp(Builder9::v9(0), &[58, 0, 0, 135, 0]), [Some(135), Some(0)]);
    assert_eq!(icmp(Builder9::v9(0), &[6, 0, 0, 3, 1]), [None, None]);
    assert_eq!(icmp(Builder9::v9(0), &[1, 0, 7, 3, 1]), [None, None]);
    assert_eq!(icmp(Builder9::ipfix(0), &[1, 0, 0, 3, 1]), [None, None]);
    let row = one(Builder9::v9(0), &[(4, 1), (11, 2), (32, 2)], &[1, 3, 1, 8, 0]);
    assert_eq!((&row["icmp_type"], &row["icmp_code"]), (&json!(8), &json!(0)));
}

#[test]
fn rule_44_of_both_families_the_one_with_an_address() {
    let fields = &[(8, 4), (27, 16), (60, 1)];
    let address = |v4: u8, v6: u8, version: u8| {
        let record = [&[v4; 4][..], &[v6; 16], &[version]].concat();
        one(Builder9::ipfix(0), fields, &record)
    };
    assert_eq!(address(9, 0, 4)["src_addr"], "9.9.9.9");
    assert_eq!(address(0, 0x20, 6)["src_addr"], "2020:2020:2020:2020:2020:2020:2020:2020");
    assert_eq!(address(0, 0, 4)["src_addr"], "0.0.0.0");
    assert_eq!(address(0, 0, 6)["src_addr"], "::");
    let both = address(9, 0x20, 6);
    assert_eq!(both["src_addr"], "2020:2020:2020:2020:2020:2020:2020:2020");
    assert_eq!(both["extra"]["sourceIPv4Address"], "9.9.9.9");
}

#[test]
fn rule_45_vlans_of_different_kinds_are_different_columns() {
    let fields = &[(58, 2), (59, 2), (245, 2), (255, 2), (243, 2)];
    let row = one(Builder9::ipfix(0), fields, &[0, 1, 0, 2, 0, 3, 0, 4, 0, 0]);
    let names = ["src_vlan", "dst_vlan", "src_customer_vlan", "dst_customer_vlan"];
    assert_eq!(names.map(|name| row[name].as_u64().unwrap()), [1, 2, 3, 4]);
}

#[test]
fn rule_46_mpls_labels_with_their_classes() {
    // label 100, EXP 5; label 200, EXP 0, bottom; an unused field
    let record = [0, 0x06, 0x4a, 0, 0x0c, 0x81, 0, 0, 0];
    let row = one(Builder9::ipfix(0), &[(70, 3), (71, 3), (72, 3)], &record);
    assert_eq!((&row["mpls_labels"], &row["mpls_exp"]), (&json!([100, 200]), &json!([5, 0])));
}

/// A record of v1, v5 or v7: each column has a value of its own.
#[test]
fn netflow_1_5_and_7_have_their_fields_where_cisco_put_them() {
    let common = [
        &[10, 0, 0, 1, 10, 0, 0, 2, 10, 0, 0, 3, 0, 4, 0, 5][..],
        &6_u32.to_be_bytes(),
        &700_u32.to_be_bytes(),
        &(UPTIME_MS - 9_000).to_be_bytes(),
        &(UPTIME_MS - 1_000).to_be_bytes(),
        &[0, 80, 1, 187],
    ]
    .concat();
    let v1 = [&common[..], &[0, 0, 6, 0xb8, 0x1b, 0, 0, 0], &[0; 8]].concat();
    let v5 = [&common[..], &[0, 0x1b, 6, 0xb8, 0, 65, 0, 66, 24, 16, 0, 0]].concat();
    let v7 = [&v5[..], &[10, 0, 0, 9]].concat();
    for (version, record, header) in [(1_u16, v1, 16), (5, v5, 24), (7, v7, 24)] {
        let mut datagram = bytes(&[version, 1]);
        for word in [UPTIME_MS, EXPORT_S, 500_000_000, 77] {
            datagram.extend(word.to_be_bytes());
        }
        // engine 2:3, sampled 1 in 100
        datagram.extend([2, 3, 0x40, 100]);
        datagram.truncate(header);
        datagram.extend(&record);
        let mut bench = Bench::new();
        let outcome = bench.decoder.decode(&datagram, &sender(1), &mut bench.out);
        assert_eq!((outcome.rejected, outcome.sets_rejected), (None, 0), "v{version}");
        let row = rows(&mut bench.out.flows).remove(0);
        let want = json!({
            "proto_ver": format!("netflow{version}"), "src_addr": "10.0.0.1", "dst_addr": "10.0.0.2",
            "next_hop": "10.0.0.3", "in_if": 4, "out_if": 5, "packets": 6, "bytes": 700, "src_port": 80,
            "dst_port": 443, "ip_protocol": 6, "tos": 0xb8, "tcp_flags": 0x1b,
            "start_time": EXPORT_US + 500_000 - 9_000_000, "end_time": EXPORT_US + 500_000 - 1_000_000,
        });
        for (name, want) in want.as_object().unwrap() {
            assert_eq!(&row[name], want, "v{version} {name}");
        }
        let as_and_masks = ["src_as", "dst_as", "src_mask", "dst_mask"].map(|name| row.get(name).cloned());
        let want = if version == 1 { [const { None }; 4] } else { [65, 66, 24, 16].map(|n| Some(json!(n))) };
        assert_eq!(as_and_masks, want, "v{version}");
        let (domain, rate) = if version == 5 { (2 << 8 | 3, Some(json!(100.0))) } else { (0, None) };
        assert_eq!((&row["observation_domain"], row.get("sampling_rate")), (&json!(domain), rate.as_ref()));
        if version == 7 {
            assert_eq!(row["extra"], json!({"ipv4RouterSc": "10.0.0.9"}));
        }
    }
    let outcome = Bench::new().decoder.decode(&[0, 8, 0, 0], &sender(1), &mut Batches::new());
    assert_eq!(outcome.rejected, Some(RejectReason::NetFlow8));
}

#[test]
fn rule_48_events_without_volume_are_no_flows() {
    let mut bench = Bench::new();
    let event = &[(8, 4), (225, 4), (230, 1)];
    let flow = &[(8, 4), (230, 1), (1, 4)];
    let message = Builder9::ipfix(0).template(256, event).template(257, flow);
    let message = message.set(257, &[10, 0, 0, 1, 2, 0, 0, 0, 9]).set(256, &[10, 0, 0, 2, 192, 0, 2, 9, 1]);
    let flows = bench.send(&message);
    let events = rows(&mut bench.out.nat_events);
    assert_eq!((flows.len(), &flows[0]["nat_event"]), (1, &json!(2)));
    assert_eq!((events.len(), &events[0]["nat_src_addr"]), (1, &json!("192.0.2.9")));
    assert_eq!(bench.decoder.row_order(), [(Table::Flows, 1), (Table::NatEvents, 1)]);
}

#[test]
fn rule_50_classes_of_service() {
    let row = one(Builder9::ipfix(0), &[(195, 1), (98, 1), (52, 1), (53, 1)], &[46, 10, 3, 9]);
    assert_eq!((&row["tos"], &row["post_tos"]), (&json!(184), &json!(40)));
    assert_eq!((&row["min_ttl"], &row["max_ttl"], row.get("ip_ttl")), (&json!(3), &json!(9), None));
}

#[test]
fn rule_41_junipers_exceptions_are_dropped_packets() {
    let property = [0x8000 | 137, 2, 0, 2636];
    let set = bytes(&[&[256, 4, 7, 2][..], &property, &property, &property].concat());
    // interfaces (types 1 and 4) and an exception (type 2)
    let record = |exception: u8| [0, 1, 0x04, 9, 0x08, exception, 0x10, 7];
    let records = [record(0), record(66)].concat();
    let all = Bench::new().send(&Builder9::ipfix(0).set(2, &set).set(256, &records));
    assert_eq!((&all[0]["forwarding_status"], &all[1]["forwarding_status"]), (&json!(64), &json!(128)));
    assert_eq!(all[1]["extra"].as_object().unwrap().len(), 3);
}

#[test]
fn rule_51_unknown_elements_are_kept_by_number_and_bad_text_as_it_is() {
    let set = bytes(&[256, 3, 7, 2, 0x8000 | 77, 2, 0, 4_242, 82, 4]);
    let record = [0, 1, 0xab, 0xcd, b'e', 0xff, b'0', 0];
    let mut bench = Bench::new();
    let message = Builder9::ipfix(0).set(2, &set).set(256, &record);
    let all = bench.send(&message);
    assert_eq!(all[0]["extra"], json!({"4242:77": "0xabcd", "interfaceName": "e\u{fffd}0"}));
    // and told of, once a template
    bench.send(&message);
    bench.decoder.report(0, &mut bench.out);
    let events = rows(&mut bench.out.exporter_events);
    let told: Vec<_> = events.iter().filter(|event| event["event"] == "unknown_elements").collect();
    assert_eq!(
        (told.len(), &told[0]["detail"], &told[0]["template_id"]),
        (1, &json!("4242:77"), &json!(256))
    );
    // text columns count what is no UTF-8
    let mut bench = Bench::new();
    let all = bench
        .send(&Builder9::ipfix(0).template(256, &[(371, 3)]).set(256, &[b'a', 0xff, b'b', b'o', b'k', 0]));
    assert_eq!((&all[0]["user_name"], &all[1]["user_name"]), (&json!("a\u{fffd}b"), &json!("ok")));
    assert_eq!(bench.counters().bad_texts, 1);
}

#[test]
fn application_names_come_from_the_options_data() {
    let mut bench = Bench::new();
    let options = Builder9::ipfix(0).options(300, 1, &[(95, 4), (96, 8)]);
    bench.send(&options.set(300, b"\x03\0\0\x35dns\0\0\0\0\0"));
    let all = bench.send(&Builder9::ipfix(1).template(256, &[(95, 4)]).set(256, b"\x03\0\0\x35\x03\0\0\x50"));
    assert_eq!((&all[0]["app_id"], &all[0]["app_name"]), (&json!("3:53"), &json!("dns")));
    assert_eq!((&all[1]["app_id"], all[1].get("app_name")), (&json!("3:80"), None));
    let options = rows(&mut bench.out.options);
    assert_eq!(
        (&options[0]["scope"], &options[0]["fields"]),
        (&json!({"applicationId": "3:53"}), &json!({"applicationName": "dns"}))
    );
}

#[test]
fn a_sampled_frame_fills_the_columns_that_the_record_has_not() {
    // Ethernet, IPv4, UDP 1000 to 53; the record's own TTL stays
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([3, 232, 0, 53, 0, 12, 0, 0]);
    let fields = &[(312, 2), (192, 1), (315, 0xffff)];
    let record = [&[0, 100, 9, frame.len() as u8][..], &frame].concat();
    let row = one(Builder9::ipfix(0), fields, &record);
    assert_eq!((&row["bytes"], &row["packets"], &row["ip_ttl"]), (&json!(100), &json!(1), &json!(9)));
    assert_eq!(
        (&row["src_addr"], &row["dst_port"], &row["ip_bytes"]),
        (&json!("10.0.0.1"), &json!(53), &json!(32))
    );
}

#[test]
fn a_section_ends_and_begins_where_the_exporter_says() {
    let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 53, 0, 8, 0, 0];
    // padded to forty octets: the ones behind the packet are none of it
    let padded = [&ip[..22], &[0xff; 18]].concat();
    let fields = &[(410, 2), (409, 2), (313, 40)];
    let row = |exported: u8, offset: u8| {
        one(Builder9::ipfix(0), fields, &[&[0, exported, 0, offset][..], &padded].concat())
    };
    let cut = row(22, 0);
    assert_eq!((&cut["dst_addr"], cut.get("src_port")), (&json!("10.0.0.2"), None));
    assert_eq!(cut["frame_truncated"], true);
    assert_eq!(row(22, 14).get("dst_addr"), None);
    // NetFlow v9's section of a frame
    let frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &ip].concat();
    let row = one(Builder9::v9(0), &[(104, frame.len() as u16)], &frame);
    assert_eq!((&row["dst_port"], &row["src_mac"]), (&json!(53), &json!("02:00:00:00:00:02")));
    // what follows a label stack; a frame that is not Ethernet
    assert_eq!(one(Builder9::ipfix(0), &[(317, ip.len() as u16)], &ip)["dst_port"], 53);
    let wireless = [&[0, 2][..], &frame].concat();
    let row = one(Builder9::ipfix(0), &[(408, 2), (315, frame.len() as u16)], &wireless);
    assert_eq!(row.get("src_addr"), None);
}

#[test]
fn a_restart_decodes_at_once_with_what_was_saved() {
    let mut bench = Bench::new();
    let options = Builder9::v9(0).options(300, 1, &[(1, 4), (34, 4)]).set(300, &[0, 0, 0, 1, 0, 0, 0, 10]);
    let options = options.template(256, PORTS);
    for sequence in 0..10 {
        let meta = sender(50_000);
        let meta = DatagramMeta { received_us: meta.received_us + i64::from(sequence) * 1_000_000, ..meta };
        bench.send_from(&Builder9 { sequence, ..options.clone() }, &meta);
    }
    let saved = bench.decoder.shared().snapshot();
    let shared = Arc::new(SharedState::new());
    assert_eq!(shared.restore(&saved, &DecodeConfig::default()).unwrap(), 2);
    let mut after = Bench { decoder: Decoder::new(Arc::default(), shared), out: Batches::new() };
    let all = after.send(&Builder9::v9(1).set(256, &[0, 1, 0, 2]));
    assert_eq!((&all[0]["src_port"], &all[0]["sampling_rate"]), (&json!(1), &json!(10.0)));
    assert!(after.decoder.exporters().iter().all(|state| state.established));
    assert!(SharedState::new().restore(b"{", &DecodeConfig::default()).is_err());
}

#[test]
fn a_template_that_another_shard_learned_decodes_here() {
    let shared = Arc::new(SharedState::new());
    let mut one = Bench { decoder: Decoder::new(Arc::default(), Arc::clone(&shared)), out: Batches::new() };
    let mut other = Bench { decoder: Decoder::new(Arc::default(), shared), out: Batches::new() };
    assert!(other.send(&Builder9::v9(0).set(256, &[0, 1, 0, 2])).is_empty());
    one.send(&Builder9::v9(1).template(256, PORTS));
    other.decoder.tick(sender(1).received_us, &mut other.out);
    assert_eq!(rows(&mut other.out.flows).len(), 1, "what waited is decoded at the next tick");
    assert_eq!(other.send(&Builder9::v9(2).set(256, &[0, 3, 0, 4]))[0]["src_port"], 3);
}

#[test]
fn exporter_stats_are_differences() {
    let mut bench = Bench::new();
    bench.send(&Builder9::v9(0).template(256, PORTS).set(256, &[0, 1, 0, 2]));
    bench.decoder.report(1, &mut bench.out);
    bench.send(&Builder9::v9(3).set(256, &[0, 1, 0, 2, 0, 1, 0, 2]));
    bench.decoder.report(2, &mut bench.out);
    // the two that were missing come late: what was said stands, the total is right with the next losses
    bench.send(&Builder9::v9(1));
    bench.send(&Builder9::v9(6));
    bench.decoder.report(3, &mut bench.out);
    bench.decoder.report(4, &mut bench.out);
    let stats = rows(&mut bench.out.exporter_stats);
    let of = |name: &str| stats.iter().map(|row| row[name].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        (of("datagrams"), of("flows"), of("templates")),
        (vec![1, 1, 2], vec![1, 2, 0], vec![1, 0, 0])
    );
    assert_eq!((of("sequence_lost"), of("sequence_reordered")), (vec![0, 2, 1], vec![0, 0, 1]));
    assert_eq!(bench.counters().sequence_lost, 3);
}

#[test]
fn exporter_stats_share_out_what_the_collector_lost() {
    let mut bench = Bench::new();
    let report = |bench: &mut Bench| {
        bench.decoder.report(1, &mut bench.out);
        let rows = rows(&mut bench.out.exporter_stats);
        let lost = |row: &serde_json::Map<String, serde_json::Value>| {
            ["kernel_drops", "rows_dropped"].map(|name| row[name].as_f64().unwrap())
        };
        let mut lost: Vec<[f64; 2]> = rows.iter().map(lost).collect();
        lost.sort_by(|left, right| right[0].total_cmp(&left[0]));
        lost
    };
    // nobody has sent anything yet: it is told with the first that does
    bench.decoder.note_losses(Losses { kernel_drops: 6.0, rows_dropped: 4.0 });
    assert_eq!(report(&mut bench), [[0.0; 2]; 0]);
    let one = sender(1);
    let other = DatagramMeta { sender: Address::v4([192, 0, 2, 9]), ..one };
    bench.send_from(&Builder9::v9(0).template(256, PORTS).set(256, &[0, 1, 0, 2]), &one);
    bench.send_from(&Builder9::v9(1), &one);
    bench.send_from(
        &Builder9::v9(0).template(256, PORTS).set(256, &[0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2]),
        &other,
    );
    bench.decoder.note_losses(Losses { kernel_drops: 3.0, rows_dropped: 0.0 });
    assert_eq!(report(&mut bench), [[6.0, 1.0], [3.0, 3.0]]);
    assert_eq!(bench.decoder.losses(), Losses::default());
    bench.send_from(&Builder9::v9(2), &one);
    assert_eq!(report(&mut bench), [[0.0; 2]]);
}

#[test]
fn exporter_stats_give_back_what_came_late() {
    let mut bench = Bench::new();
    let report = |bench: &mut Bench| {
        bench.decoder.report(1, &mut bench.out);
        let row = rows(&mut bench.out.exporter_stats).remove(0);
        ["sequence_lost", "sequence_recovered"].map(|name| row[name].as_u64().unwrap())
    };
    bench.send(&Builder9::v9(0));
    bench.send(&Builder9::v9(3));
    assert_eq!(report(&mut bench), [2, 0]);
    bench.send(&Builder9::v9(1));
    assert_eq!(report(&mut bench), [0, 1]);
    bench.send(&Builder9::v9(5));
    bench.send(&Builder9::v9(2));
    assert_eq!(report(&mut bench), [0, 0]);
    assert_eq!(bench.counters().sequence_lost, 1);
}
