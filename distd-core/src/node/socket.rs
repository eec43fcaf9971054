//! One UDP socket: batched calls, segmentation offload where the kernel grants it, plain datagrams
//! where it does not.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use rustix::net::sockopt;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::ppspp::engine::Transmit;

/// What the kernel may coalesce into one receive buffer.
const RECEIVE_BUFFER_BYTES: usize = 1 << 16;
/// Buffers filled in one call: half a MiB, so that it is still in the processor's cache when it is
/// hashed, and the sender hears of it while it sends more.
const RECEIVE_BUFFERS: usize = 8;
/// Socket buffers, in bytes: 8 ms at 8 Gbit/s, so that a descheduled process loses nothing.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// A bound UDP socket and its receive buffers.
pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    /// Cleared for good when the kernel or the device refuses a segmented send.
    segmentation: bool,
    mapped: bool,
    buffers: Vec<Vec<u8>>,
    metas: Vec<RecvMeta>,
}

/// What became of a transmit.
pub(super) enum Sent {
    /// Handed to the kernel, or lost as datagrams may be.
    Done,
    /// The kernel's buffer is full: offer it again when the socket is writable.
    Blocked,
}

impl Socket {
    /// Binds `address`. An unspecified IPv6 address takes IPv4 too; where the machine has no IPv6 the
    /// unspecified IPv4 address is taken in its place.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = match Self::bind_one(address) {
            Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                if error.kind() == io::ErrorKind::AddrInUse {
                    return Err(error);
                }
                Self::bind_one(SocketAddr::new([0, 0, 0, 0].into(), address.port()))?
            }
            bound => bound?,
        };
        let reserve = |force: io::Result<()>, plain: &dyn Fn() -> io::Result<()>| {
            // Past the administrator's limit only root may go; what is granted is good enough.
            if force.is_err() && plain().is_err() {
                tracing::debug!("the kernel keeps its default socket buffers");
            }
        };
        reserve(
            sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
                .map_err(Into::into),
            &|| Ok(sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?),
        );
        reserve(
            sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
                .map_err(Into::into),
            &|| Ok(sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?),
        );
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let mapped = socket.local_addr()?.is_ipv6();
        Ok(Self {
            segmentation: state.max_gso_segments() > 1,
            io: UdpSocket::from_std(socket)?,
            state,
            mapped,
            buffers: vec![vec![0; RECEIVE_BUFFER_BYTES]; RECEIVE_BUFFERS],
            metas: vec![RecvMeta::default(); RECEIVE_BUFFERS],
        })
    }

    fn bind_one(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        if let SocketAddr::V6(v6) = address
            && v6.ip().is_unspecified()
        {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None)?;
            sockopt::set_ipv6_v6only(&socket, false)?;
            bind(&socket, &SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0)))?;
            return Ok(socket.into());
        }
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// The address bound.
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Waits until there may be something to receive.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.io.readable().await
    }

    /// Waits until the kernel takes datagrams again.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.io.writable().await
    }

    /// Receives one batch, if there is one, and hands out what came from each peer together: datagrams
    /// of so many bytes each, the last may be shorter.
    pub(super) fn receive(
        &mut self,
        mut each: impl FnMut(SocketAddr, &[u8], usize),
    ) -> io::Result<()> {
        let Self { io, state, buffers, metas, .. } = self;
        let mut slices: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let count = match io
            .try_io(Interest::READABLE, || state.recv(UdpSockRef::from(&*io), &mut slices, metas))
        {
            Ok(count) => count,
            Err(error) if is_transient(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        for (buffer, meta) in buffers.iter().zip(metas.iter()).take(count) {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let received = buffer.get(..meta.len).unwrap_or_default();
            each(from, received, meta.stride.max(1));
        }
        Ok(())
    }

    /// Sends one batch of datagrams to one peer.
    pub(super) fn send(&mut self, transmit: &Transmit) -> Sent {
        let destination = match (self.mapped, transmit.to.ip()) {
            (true, IpAddr::V4(ip)) => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), transmit.to.port())
            }
            _ => transmit.to,
        };
        let segment = transmit.segment_bytes.filter(|s| *s < transmit.payload.len());
        if let Some(segment) = segment.filter(|_| !self.segmentation) {
            return self.send_singly(destination, &transmit.payload, segment);
        }
        match self.try_send(destination, &transmit.payload, segment) {
            Ok(()) => Sent::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked,
            // Drivers refuse segmentation with EIO or EINVAL: resend unsegmented at once.
            Err(error) => match segment {
                Some(segment) => {
                    tracing::debug!(%error, "segmented send refused, going on without");
                    self.segmentation = false;
                    self.send_singly(destination, &transmit.payload, segment)
                }
                // A datagram that cannot be sent is a datagram lost: the engine's timeouts know.
                None => Sent::Done,
            },
        }
    }

    fn send_singly(&self, destination: SocketAddr, payload: &[u8], segment: usize) -> Sent {
        for datagram in payload.chunks(segment) {
            if let Err(error) = self.try_send(destination, datagram, None)
                && error.kind() == io::ErrorKind::WouldBlock
            {
                // The rest of the batch counts as lost; receivers ask for the holes.
                return Sent::Done;
            }
        }
        Sent::Done
    }

    fn try_send(
        &self,
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit =
            quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        self.io.try_io(Interest::WRITABLE, || {
            self.state.try_send(UdpSockRef::from(&self.io), &transmit)
        })
    }
}

/// ICMP answers and interruptions surface as errors of the next call; they say nothing about the
/// socket.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

/// How long the loop rests after an error of the socket that is not transient.
pub(super) const SOCKET_ERROR_PAUSE: Duration = Duration::from_millis(100);
