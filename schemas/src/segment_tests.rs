use proptest::prelude::*;

use super::*;
use crate::tables::{SCHEMA_VERSION, Table};

fn envelope(batch_seq: u64) -> Envelope {
    Envelope {
        schema_version: SCHEMA_VERSION,
        table: Table::Flows,
        collector: "c1".to_owned(),
        boot: 0xfeed,
        batch_seq,
        rows: 3,
        min_time_us: -5,
        max_time_us: 1_700_000_000_000_000,
        covered: None,
        origin: None,
    }
}

fn append(segment: &mut Vec<u8>, offset: u64, body: &[u8]) {
    let parts = encode_frame(2, offset, 99, &envelope(offset), body.chunks(3)).unwrap();
    let before = segment.len();
    segment.extend_from_slice(&parts.prefix);
    segment.extend_from_slice(body);
    segment.extend_from_slice(&parts.checksum);
    assert_eq!(segment.len() - before, parts.frame_bytes(body.len()));
}

fn walk(segment: &[u8]) -> Vec<Step> {
    let (mut scanner, mut steps) = (Scanner::default(), Vec::new());
    loop {
        let before = scanner.position();
        let step = scanner.step(segment, segment.len() as u64).unwrap();
        match &step {
            Step::End => return steps,
            Step::Torn { at } => {
                assert_eq!((before, scanner.position()), (*at, *at));
                steps.push(step);
                return steps;
            }
            Step::Frame(_) | Step::Corrupt { .. } => {
                assert!(scanner.position() > before, "the scanner stands still")
            }
        }
        steps.push(step);
    }
}

#[test]
fn a_batch_is_opened_where_it_was_read_to() {
    let numbers = arrow::array::UInt64Array::from_iter_values(0..1_000);
    let batch =
        arrow::array::RecordBatch::try_from_iter([("bytes", std::sync::Arc::new(numbers) as _)]).unwrap();
    let body = crate::envelope::encode_body(&batch, crate::envelope::Compression::None).unwrap();
    let mut segment = Vec::new();
    // the frames' own lengths are no multiples of anything
    (0..9).for_each(|offset| append(&mut segment, offset, &body));
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &segment).unwrap();
    let mut scanner = Scanner::default();
    let mut opened = 0;
    while let Step::Frame(frame) = scanner.step(&file, segment.len() as u64).unwrap() {
        let body = frame.body();
        assert_eq!(body.as_ptr().addr() % 64, 0);
        let envelope = Envelope { rows: 1_000, ..frame.envelope().unwrap() };
        let read = crate::envelope::open_body(&envelope, &body).unwrap();
        assert_eq!(read, batch);
        let values = read.column(0).to_data().buffers()[0].as_ptr();
        assert!(body.as_ptr_range().contains(&values), "the values were copied");
        opened += 1;
    }
    assert_eq!(opened, 9);
}

fn frames(steps: &[Step]) -> Vec<(u64, Bytes)> {
    let frame = |step: &Step| match step {
        Step::Frame(frame) => {
            assert_eq!(frame.envelope().unwrap(), envelope(frame.head.offset));
            assert_eq!((frame.head.partition, frame.head.appended_us), (2, 99));
            Some((frame.head.offset, frame.body()))
        }
        _ => None,
    };
    steps.iter().filter_map(frame).collect()
}

/// Four frames and where each begins; the third body holds the bytes of a frame's magic.
fn small_segment() -> (Vec<u8>, Vec<usize>, Vec<(u64, Bytes)>) {
    let bodies: [&[u8]; 4] = [b"first", b"", b"xx\xf7WR\x01yyyyyyyy", b"the last one"];
    let (mut segment, mut starts, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
    for (offset, body) in (40..).zip(bodies) {
        starts.push(segment.len());
        append(&mut segment, offset, body);
        wanted.push((offset, Bytes::from_static(body)));
    }
    starts.push(segment.len());
    (segment, starts, wanted)
}

#[test]
fn frames_come_back_as_they_were_written() {
    let (segment, _, wanted) = small_segment();
    let steps = walk(&segment);
    assert_eq!(steps.len(), 4);
    assert_eq!(frames(&steps), wanted);
}

#[test]
fn a_segment_cut_at_any_byte_is_torn_there_and_never_corrupt() {
    let (segment, starts, wanted) = small_segment();
    for cut in 0..segment.len() {
        let steps = walk(&segment[..cut]);
        let whole = starts.iter().filter(|start| **start <= cut).count() - 1;
        assert_eq!(frames(&steps), wanted[..whole], "cut at {cut}");
        let torn = starts[whole] != cut;
        assert_eq!(steps.len(), whole + usize::from(torn), "cut at {cut}");
        if torn {
            assert_eq!(steps.last(), Some(&Step::Torn { at: starts[whole] as u64 }), "cut at {cut}");
        }
    }
}

#[test]
fn a_flipped_bit_costs_its_own_frame_and_no_other() {
    let (segment, starts, wanted) = small_segment();
    for bit in 0..segment.len() * 8 {
        let mut damaged = segment.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let hit = starts.iter().filter(|start| **start <= bit / 8).count() - 1;
        let steps = walk(&damaged);
        let others: Vec<_> =
            wanted.iter().enumerate().filter(|(at, _)| *at != hit).map(|(_, frame)| frame.clone()).collect();
        assert_eq!(frames(&steps), others, "bit {bit}");
        let range = starts[hit] as u64..starts[hit + 1] as u64;
        assert!(
            matches!(&steps[hit], Step::Corrupt { range: found, .. } if *found == range),
            "bit {bit}: {:?}",
            steps[hit]
        );
        assert_eq!(steps.len(), 4, "bit {bit}");
    }
}

#[test]
fn a_byte_lost_or_inserted_anywhere_costs_its_own_frame() {
    let (segment, starts, wanted) = small_segment();
    for at in 0..segment.len() {
        let hit = starts.iter().filter(|start| **start <= at).count() - 1;
        for insert in [false, true] {
            let mut damaged = segment.clone();
            if insert {
                damaged.insert(at, 0x5a);
            } else {
                damaged.remove(at);
            }
            let found = frames(&walk(&damaged));
            for (number, frame) in wanted.iter().enumerate().filter(|(number, _)| *number != hit) {
                // an inserted byte before a frame leaves the frame before it whole, and that one itself too
                assert!(found.contains(frame), "byte {at}, insert {insert}: frame {number} is lost");
            }
            assert!(found.iter().all(|frame| wanted.contains(frame)));
        }
    }
}

#[test]
fn damage_larger_than_one_search_step_is_passed_over() {
    let mut segment = vec![0; SEARCH_BYTES - 7];
    segment.extend(std::iter::repeat_n(0xf7, SEARCH_BYTES));
    let start = segment.len() as u64;
    append(&mut segment, 7, b"after the damage");
    let steps = walk(&segment);
    assert_eq!(steps[0], Step::Corrupt { range: 0..start, defect: Defect::Magic });
    assert_eq!(frames(&steps), [(7, Bytes::from_static(b"after the damage"))]);
    // and across the edge of a search step, at every position of the head
    for shift in 0..FRAME_HEAD_BYTES {
        let mut segment = vec![0; SEARCH_BYTES + 1 - shift];
        append(&mut segment, 7, b"x");
        assert_eq!(frames(&walk(&segment)).len(), 1, "shift {shift}");
    }
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let mut segment = Vec::new();
    append(&mut segment, 1, b"new");
    segment[3] = FRAME_VERSION + 1;
    let checksum = head_checksum(&segment).to_le_bytes();
    segment[4..8].copy_from_slice(&checksum);
    assert_eq!(FrameHead::parse(&segment), Err(Defect::Newer(FRAME_VERSION + 1)));
}

#[test]
fn lengths_out_of_bounds_are_refused_on_both_ways() {
    let mut segment = Vec::new();
    append(&mut segment, 1, b"body");
    segment[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    let checksum = head_checksum(&segment).to_le_bytes();
    segment[4..8].copy_from_slice(&checksum);
    assert_eq!(FrameHead::parse(&segment), Err(Defect::Bounds));

    let mut long_name = envelope(1);
    long_name.collector = "x".repeat(70_000);
    assert!(encode_frame(0, 0, 0, &long_name, []).is_err());
    let error = encode_frame(0, 0, 0, &envelope(1), [&[0; MAX_BODY_BYTES / 2 + 1][..]; 2]).unwrap_err();
    assert_eq!(error.body, MAX_BODY_BYTES + 2);
}

#[test]
fn frames_below_an_offset_are_skipped_by_their_heads() {
    let (segment, starts, _) = small_segment();
    for (wanted, start) in [(0, 0), (40, 0), (41, 1), (43, 3), (44, 4), (99, 4)] {
        let mut scanner = Scanner::default();
        scanner.skip_below(segment.as_slice(), wanted, segment.len() as u64).unwrap();
        assert_eq!(scanner.position(), starts[start] as u64, "offset {wanted}");
    }
    // no further than the limit, even if the frame is there
    let mut scanner = Scanner::default();
    scanner.skip_below(segment.as_slice(), 99, starts[2] as u64 + 1).unwrap();
    assert_eq!(scanner.position(), starts[2] as u64);
}

#[test]
fn a_mark_survives_a_torn_write_of_the_next() {
    let first = Mark { sequence: 6, end: 10, segment: 3, bytes: 4567, boot: 1 };
    let second = Mark { sequence: 7, end: 11, ..first };
    let mut file = vec![0; MARK_SLOTS[1] as usize + MARK_BYTES];
    assert_eq!(Mark::read(file.as_slice()).unwrap(), None);
    let mut put = |mark: Mark, bytes: usize| {
        let (at, encoded) = mark.encode();
        file[at as usize..at as usize + bytes].copy_from_slice(&encoded[..bytes]);
        Mark::read(file.as_slice()).unwrap()
    };
    assert_eq!(put(first, MARK_BYTES), Some(first));
    for torn in 0..MARK_BYTES {
        let read = put(second, torn);
        // the last bytes of the checksum may be as they were: zero
        assert!(read == Some(first) || torn > 59 && read == Some(second), "torn at {torn}: {read:?}");
    }
    assert_eq!(put(second, MARK_BYTES), Some(second));
}

#[test]
fn file_names_are_read_back_and_others_are_not_taken() {
    for first in [0, 7, u64::MAX] {
        assert_eq!(segment_first(&segment_name(first)), Some(first));
    }
    for other in [
        "",
        ".seg",
        "7.seg",
        "0000000000000000000x.seg",
        "99999999999999999999.seg",
        "head",
        "-0000000000000000007.seg",
    ] {
        assert_eq!(segment_first(other), None, "{other}");
    }
    assert_eq!(partition_number("12"), Some(12));
    for other in ["", "012", "-1", "+1", "x", "4294967296"] {
        assert_eq!(partition_number(other), None, "{other}");
    }
}

proptest! {
    /// Whatever stands in a file: no panic, no standing still, and every byte is accounted for.
    #[test]
    fn any_bytes_are_walked_to_their_end(
        noise in prop::collection::vec(prop_oneof![Just(0xf7), Just(b'W'), Just(b'R'), Just(1), any::<u8>()], 0..300),
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut segment = noise.clone();
        for (offset, body) in (0..).zip(&bodies) {
            append(&mut segment, offset, body);
        }
        segment.truncate(cut.index(segment.len() + 1));
        let mut at = 0;
        for step in walk(&segment) {
            match step {
                Step::Frame(frame) => at += frame.bytes().len() as u64,
                Step::Corrupt { range, .. } => {
                    prop_assert_eq!(range.start, at);
                    at = range.end;
                }
                Step::Torn { at: torn } => {
                    prop_assert_eq!(torn, at);
                    at = segment.len() as u64;
                }
                Step::End => unreachable!(),
            }
        }
        prop_assert_eq!(at, segment.len() as u64);
    }
}
