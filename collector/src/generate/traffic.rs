//! The measured traffic: who talks to whom, how much, in which class.

/// A small, fast, reproducible generator (wyrand). Not the crate `fastrand`: its sequence may change with its version,
/// and the same seed must give the same bytes.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        let mut random = Random(seed ^ 0x9e37_79b9_7f4a_7c15);
        random.next();
        random
    }

    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let product = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        (product >> 64) as u64 ^ product as u64
    }

    /// 0 to `n` - 1.
    #[inline]
    pub(super) fn below(&mut self, n: u32) -> u32 {
        scale(self.next() as u32, n)
    }
}

/// `word` of 2^32 as a part of `n`.
#[inline]
fn scale(word: u32, n: u32) -> u32 {
    ((u64::from(word) * u64::from(n)) >> 32) as u32
}

/// Draws an index by weight in constant time (Walker's alias method, Vose's construction).
#[derive(Debug)]
struct Weighted(Vec<(u32, u32)>);

impl Weighted {
    fn new(weights: &[f64]) -> Weighted {
        let sum: f64 = weights.iter().sum();
        let mut scaled: Vec<f64> = weights.iter().map(|weight| weight * weights.len() as f64 / sum).collect();
        let mut table = vec![(u32::MAX, 0); weights.len()];
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|i| scaled[*i] < 1.0);
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            table[less] = ((scaled[less] * f64::from(u32::MAX)) as u32, more as u32);
            scaled[more] -= 1.0 - scaled[less];
            if scaled[more] < 1.0 {
                large.pop();
                small.push(more);
            }
        }
        for (index, entry) in table.iter_mut().enumerate() {
            if entry.0 == u32::MAX {
                entry.1 = index as u32;
            }
        }
        Weighted(table)
    }

    #[inline]
    fn draw(&self, random: &mut Random) -> usize {
        let word = random.next();
        let index = scale((word >> 32) as u32, self.0.len() as u32) as usize;
        let (threshold, alias) = self.0[index];
        if word as u32 <= threshold { index } else { alias as usize }
    }
}

/// A host, inside or outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    pub(super) v4: [u8; 4],
    pub(super) v6: [u8; 16],
    pub(super) autonomous_system: u32,
    pub(super) mask: u8,
    pub(super) mask_v6: u8,
    pub(super) interface: u32,
}

#[derive(Debug, Clone, Copy)]
struct Service {
    weight: u16,
    protocol: u8,
    port: u16,
    tos: u8,
    /// Usual length of a packet (IP), and log2 of the most packets a flow has.
    size: u16,
    max_log: u8,
}

const fn service(weight: u16, protocol: u8, port: u16, tos: u8, size: u16, max_log: u8) -> Service {
    Service { weight, protocol, port, tos, size, max_log }
}

/// Web, names, voice, video, files, routing: with the classes that networks give them (RFC 4594).
const SERVICES: [Service; 18] = [
    service(380, 6, 443, 0x00, 900, 14),
    service(150, 17, 443, 0x00, 1_100, 14),
    service(140, 17, 53, 0x00, 110, 1),
    service(70, 6, 80, 0x00, 850, 12),
    service(40, 17, 5004, 0xb8, 200, 12),
    service(30, 17, 3478, 0x88, 980, 12),
    service(30, 6, 6881, 0x20, 1_200, 13),
    service(25, 1, 0, 0x00, 84, 3),
    service(22, 17, 123, 0x00, 76, 1),
    service(20, 6, 22, 0x48, 160, 10),
    service(20, 6, 445, 0x28, 1_000, 13),
    service(18, 6, 3306, 0x48, 420, 10),
    service(15, 6, 993, 0x00, 500, 9),
    service(12, 17, 161, 0x40, 140, 3),
    service(10, 50, 0, 0x00, 780, 13),
    service(8, 6, 25, 0x00, 700, 8),
    service(6, 17, 5060, 0x60, 480, 3),
    service(4, 6, 179, 0xc0, 90, 6),
];

/// Some networks outside; above 65,535 too.
const AUTONOMOUS_SYSTEMS: [u32; 16] = [
    64_496, 64_497, 64_498, 64_499, 64_500, 64_501, 64_502, 64_503, 64_504, 64_505, 64_506, 64_507, 64_508,
    65_536, 65_540, 65_551,
];

/// Interfaces: four inside, two uplinks.
pub(super) const INTERFACES: [u32; 6] = [1, 2, 3, 4, 101, 102];

const TCP: u8 = 6;

/// A flow, before it is written in a protocol's form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow<'a> {
    pub(super) src: &'a Host,
    pub(super) dst: &'a Host,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    pub(super) protocol: u8,
    pub(super) tcp_flags: u8,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) packets: u32,
    pub(super) bytes: u32,
    /// Length of one of its packets.
    pub(super) packet_len: u32,
    pub(super) duration_ms: u32,
    /// From its last packet to its export.
    pub(super) lag_ms: u32,
    pub(super) label: u32,
}

/// The population.
#[derive(Debug)]
pub(super) struct Traffic {
    inside: Vec<Host>,
    outside: Vec<Host>,
    hosts: Weighted,
    services: Weighted,
    ipv6_percent: u32,
}

impl Traffic {
    pub(super) fn new(hosts: u32, ipv6_percent: u8, random: &mut Random) -> Traffic {
        let inside = (0..hosts).map(|n| Traffic::inside(n, random)).collect();
        let outside = (0..hosts).map(|_| Traffic::outside(random)).collect();
        // Zipf with exponent 1: by division alone, so that every machine gets the same table
        let zipf: Vec<f64> = (1..=hosts).map(|rank| 1.0 / f64::from(rank)).collect();
        let services: Vec<f64> = SERVICES.iter().map(|service| f64::from(service.weight)).collect();
        Traffic {
            inside,
            outside,
            hosts: Weighted::new(&zipf),
            services: Weighted::new(&services),
            ipv6_percent: u32::from(ipv6_percent.min(100)),
        }
    }

    fn inside(n: u32, random: &mut Random) -> Host {
        // spread over 10.0.0.0/8 in the order of popularity, so that neighbours are not alike
        let [_, b, c, d] = (n.wrapping_mul(0x9e37_79b1) >> 8).to_be_bytes();
        let mut v6 = [0; 16];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[6..8].copy_from_slice(&[b, c]);
        v6[8..].copy_from_slice(&random.next().to_be_bytes());
        let interface = INTERFACES[random.below(4) as usize];
        Host { v4: [10, b, c, d], v6, autonomous_system: 64_511, mask: 24, mask_v6: 64, interface }
    }

    fn outside(random: &mut Random) -> Host {
        let word = random.next();
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        // unicast, neither loopback nor private nor link-local
        let first = match a % 190 + 11 {
            100 => 101,
            127 => 128,
            169 => 168,
            172 => 173,
            192 => 193,
            198 => 199,
            203 => 204,
            other => other,
        };
        let mut v6 = [0; 16];
        v6[..6].copy_from_slice(&[0x2a, 0x0e | (a & 1), b & 0x3f, c, d & 0xf0, 0]);
        v6[8..].copy_from_slice(&[e, f, g, h, d, c, b, a]);
        let autonomous_system = AUTONOMOUS_SYSTEMS[usize::from(b) % AUTONOMOUS_SYSTEMS.len()];
        let interface = INTERFACES[4 + usize::from(b & 1)];
        Host { v4: [first, b, c, d], v6, autonomous_system, mask: 16, mask_v6: 32, interface }
    }

    /// True where IPv6 is due.
    pub(super) fn is_v6(&self, random: &mut Random) -> bool {
        random.below(100) < self.ipv6_percent
    }

    #[inline]
    pub(super) fn flow(&self, random: &mut Random) -> Flow<'_> {
        let client = &self.inside[self.hosts.draw(random)];
        let server = &self.outside[self.hosts.draw(random)];
        let service = &SERVICES[self.services.draw(random)];
        let word = random.next();
        // heavy-tailed: each doubling half as likely
        let log = (word as u32 | 1 << 31).trailing_zeros().min(u32::from(service.max_log));
        let packets = (1 << log) + ((word >> 32) as u32 & ((1 << log) - 1));
        let half = u32::from(service.size) / 2;
        let packet_len = u32::from(service.size) - half / 2 + scale((word >> 16) as u32, half.max(1));
        let packet_len = packet_len.clamp(64, 1_500);
        let more = random.next();
        let ephemeral = 32_768 + ((more as u16) & 0x6fff) % 28_000;
        let has_ports = service.protocol == TCP || service.protocol == 17;
        let (client_port, server_port) =
            if has_ports { (ephemeral, service.port) } else { (0, service.port) };
        let ecn = match (service.protocol, (more >> 16) & 0x1ff) {
            (TCP, 0) => 3,
            (TCP, 1..=50) => 2,
            _ => 0,
        };
        let upload = more >> 32 & 1 == 1;
        let (src, dst, src_port, dst_port) = if upload {
            (client, server, client_port, server_port)
        } else {
            (server, client, server_port, client_port)
        };
        let tcp_flags = match (service.protocol, packets) {
            (TCP, 1) => 0x02,
            (TCP, 2..=8) => 0x1b,
            (TCP, _) => 0x1a,
            _ => 0,
        };
        Flow {
            src,
            dst,
            src_port,
            dst_port,
            protocol: service.protocol,
            tcp_flags,
            tos: service.tos | ecn,
            ttl: if upload { 63 } else { 48 + (more >> 60) as u8 },
            packets,
            bytes: packets * packet_len,
            packet_len,
            duration_ms: if packets == 1 {
                0
            } else {
                ((packets - 1) * (5 + ((more >> 40) as u32 & 31))).min(60_000)
            },
            lag_ms: (more >> 45) as u32 & 0xfff,
            label: (more >> 20) as u32 & 0xf_ffff,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_their_weights() {
        let weights = [8.0, 4.0, 2.0, 1.0, 1.0];
        let table = Weighted::new(&weights);
        let mut random = Random::new(3);
        let mut counts = [0_u32; 5];
        for _ in 0..160_000 {
            counts[table.draw(&mut random)] += 1;
        }
        for (count, weight) in counts.into_iter().zip(weights) {
            let expected = 10_000.0 * weight;
            assert!((f64::from(count) - expected).abs() < expected * 0.05, "{counts:?}");
        }
    }

    #[test]
    fn traffic_is_skewed_and_has_every_class() {
        let mut random = Random::new(1);
        let traffic = Traffic::new(1_000, 25, &mut random);
        let mut classes = std::collections::BTreeMap::new();
        let mut top = 0;
        for _ in 0..20_000 {
            let flow = traffic.flow(&mut random);
            *classes.entry(flow.tos >> 2).or_insert(0) += 1;
            top += u32::from(flow.src.v4 == traffic.inside[0].v4 || flow.dst.v4 == traffic.inside[0].v4);
            assert!(flow.packets >= 1 && flow.bytes == flow.packets * flow.packet_len);
            assert!(flow.src.v4[0] == 10 || flow.dst.v4[0] == 10);
        }
        // 1 / H(1000) = 13 %
        assert!((2_000..3_500).contains(&top), "{top}");
        assert!(classes.len() >= 9, "{classes:?}");
    }
}
