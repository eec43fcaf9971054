-- Shows distd's traffic in Wireshark and tshark: PPSPP (RFC 7574) over UDP with the profile and the messages of
-- docs/protocol.md, and the datagrams by which nodes find each other on a local network.
--
--   tshark -X lua_script:contrib/wireshark/distd.lua -r FILE -Y distd
--   for good: copy this file into ~/.local/lib/wireshark/plugins (so it is one file, however long)
--
-- UDP port 7574, and every other port on which a channel is opened while the capture runs; else "Decode As". A datagram
-- does not tell how its ranges are written and how long its hashes are: that is in the HANDSHAKE of its channel. For
-- channels that were opened before the capture began the preferences say it; they are those of distd's logs at first.

local distd = Proto("distd", "distd (PPSPP)")

local ADDRESSINGS = {
  [0] = "32-bit bins", "64-bit byte ranges", "32-bit chunk ranges", "64-bit bins", "64-bit chunk ranges",
}
local SPEC_BYTES = { [0] = 4, 16, 8, 8, 16 }
local WINDOW_BYTES = { [0] = 4, 8, 4, 8, 8 }
local INTEGRITY = { [0] = "none", "Merkle tree", "Sign All", "Unified Merkle Tree" }
local HASHES = { [0] = "SHA-1", "SHA-224", "SHA-256", "SHA-384", "SHA-512", [0xb3] = "BLAKE3, by position in the log" }
local HASH_BYTES = { [0] = 20, 28, 32, 48, 64, [0xb3] = 32 }
local SIGNATURES = {
  [5] = "RSA/SHA-1", [7] = "RSA/SHA-1, NSEC3", [8] = "RSA/SHA-256", [10] = "RSA/SHA-512",
  [13] = "ECDSA P-256", [14] = "ECDSA P-384", [15] = "Ed25519", [16] = "Ed448",
}
local SIGNATURE_BYTES = { [13] = 64, [14] = 96, [15] = 64, [16] = 114 }
local IS_RSA = { [5] = true, [7] = true, [8] = true, [10] = true }
local OPTIONS = {
  [0] = "Version", "Minimum version", "Swarm id", "Content integrity", "Hash function", "Signature algorithm",
  "Chunk addressing", "Discard window", "Messages", "Chunk size", [255] = "End",
}
local TYPES = {
  [0] = "HANDSHAKE", "DATA", "ACK", "HAVE", "INTEGRITY", "PEX_RESv4", "PEX_REQ", "SIGNED_INTEGRITY", "REQUEST",
  "CANCEL", "CHOKE", "UNCHOKE", "PEX_RESv6", "PEX_REScert", "WANT", "MISS", "HAVE_MAP", "PLACE", "CIRCLE",
}
local CLASSES = { [0] = "nobody waits", "a reader waits" }
-- Chunks of different sizes: a DATA goes to the end of its datagram.
local VARIABLE = 0xffffffff
-- No log has more chunks: what lies beyond is malformed. Below it a Lua number is exact.
local CHUNKS_MAX = 2 ^ 50
local MUNRO_CHUNKS, GRANULE_CHUNKS, MUNROS_MAX = 1024, 16, 2 ^ 40
local SEATS_MAX = 16
local DATAGRAM_BYTES_MAX = 1472
local LAN_MAGIC = "distdLAN"

local f = {
  channel = ProtoField.uint32("distd.channel", "Destination channel", base.HEX),
  swarm = ProtoField.string("distd.swarm", "Swarm"),
  opened_in = ProtoField.framenum("distd.opened_in", "Channel opened in"),
  keep_alive = ProtoField.none("distd.keep_alive", "Keep-alive"),
  message = ProtoField.none("distd.message", "Message"),
  kind = ProtoField.uint8("distd.type", "Type", base.DEC, TYPES),
  bytes = ProtoField.uint32("distd.message.length", "Length", base.DEC),
  first = ProtoField.uint64("distd.first", "First chunk", base.DEC),
  last = ProtoField.uint64("distd.last", "Last chunk", base.DEC),
  count = ProtoField.uint64("distd.count", "Chunks", base.DEC),
  bin = ProtoField.uint64("distd.bin", "Bin", base.DEC),
  first_byte = ProtoField.uint64("distd.first_byte", "First byte", base.DEC),
  last_byte = ProtoField.uint64("distd.last_byte", "Last byte", base.DEC),
  source = ProtoField.uint32("distd.handshake.source", "Source channel", base.HEX),
  closing = ProtoField.bool("distd.handshake.closing", "Closes the channel"),
  option = ProtoField.uint8("distd.option", "Option", base.DEC, OPTIONS),
  version = ProtoField.uint8("distd.option.version", "Version", base.DEC),
  minimum = ProtoField.uint8("distd.option.minimum_version", "Minimum version", base.DEC),
  swarm_id = ProtoField.bytes("distd.option.swarm_id", "Swarm id"),
  integrity = ProtoField.uint8("distd.option.integrity", "Content integrity", base.DEC, INTEGRITY),
  hash_function = ProtoField.uint8("distd.option.hash", "Hash function", base.HEX, HASHES),
  algorithm = ProtoField.uint8("distd.option.signature", "Signature algorithm", base.DEC, SIGNATURES),
  addressing = ProtoField.uint8("distd.option.addressing", "Chunk addressing", base.DEC, ADDRESSINGS),
  window = ProtoField.uint64("distd.option.discard_window", "Discard window", base.DEC),
  messages = ProtoField.bytes("distd.option.messages", "Messages"),
  chunk_bytes = ProtoField.uint32("distd.option.chunk_size", "Chunk size", base.DEC),
  time = ProtoField.uint64("distd.data.time", "Sender's clock (µs)", base.DEC),
  chunk = ProtoField.bytes("distd.data.chunk", "Chunk"),
  delay = ProtoField.int64("distd.ack.delay", "One-way delay (µs, clocks differ)", base.DEC),
  hash = ProtoField.bytes("distd.integrity.hash", "Hash"),
  signed_at = ProtoField.absolute_time("distd.signed.time", "Signed at", base.UTC),
  signature = ProtoField.bytes("distd.signed.signature", "Signature"),
  ipv4 = ProtoField.ipv4("distd.pex.ipv4", "Address"),
  ipv6 = ProtoField.ipv6("distd.pex.ipv6", "Address"),
  port = ProtoField.uint16("distd.pex.port", "Port", base.DEC),
  certificate = ProtoField.bytes("distd.pex.certificate", "Certificate"),
  class = ProtoField.uint8("distd.want.class", "Class", base.DEC, CLASSES),
  deadline = ProtoField.uint32("distd.want.deadline", "Deadline (ms)", base.DEC),
  hops = ProtoField.uint8("distd.want.hops", "Hops", base.DEC),
  munro = ProtoField.uint64("distd.have_map.munro", "Munro", base.DEC),
  granules = ProtoField.uint64("distd.have_map.granules", "Granules", base.HEX),
  place_id = ProtoField.uint64("distd.place.id", "Id", base.HEX),
  level = ProtoField.uint8("distd.place.level", "Level", base.DEC),
  seats = ProtoField.uint8("distd.circle.count", "Seats", base.DEC),
  seat = ProtoField.uint64("distd.circle.id", "Id", base.HEX),
  hops_to = ProtoField.uint8("distd.circle.hops", "Hops", base.DEC),
  lan_nonce = ProtoField.bytes("distd.lan.nonce", "Nonce"),
  lan_port = ProtoField.uint16("distd.lan.port", "Peers' port", base.DEC),
  lan_key = ProtoField.bytes("distd.lan.key", "Swarm's key"),
}
distd.fields = f

local e = {
  malformed = ProtoExpert.new("distd.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR),
  cut = ProtoExpert.new("distd.cut", "The capture holds the beginning only", expert.group.UNDECODED, expert.severity.NOTE),
}
distd.experts = e

local choices = {}
for code = 0, 4 do choices[code + 1] = { code + 1, ADDRESSINGS[code], code } end
distd.prefs.addressing = Pref.enum("Chunk addressing", 4, "Of channels that were opened before the capture", choices, false)
distd.prefs.chunk = Pref.uint("Chunk size", 1024, "Bytes of a chunk; 4294967295: they differ")
distd.prefs.hash = Pref.uint("Hash length", 32, "Bytes of a hash")
distd.prefs.signature = Pref.uint("Signature length", 64, "Bytes of a signature")

-- What HANDSHAKEs told of channels: by address, port and channel of who receives on it.
local channels = {}
function distd.init() channels = {} end

local function key_of(address, port, channel) return string.format("%s|%d|%08x", tostring(address), port, channel) end

local function default_profile()
  local prefs = distd.prefs
  return { addressing = prefs.addressing, chunk = prefs.chunk, hash = prefs.hash, signature = prefs.signature }
end

-- Ends a datagram's dissection: it says something that the codec refuses.
local function malformed(text, ...) error({ text = string.format(text, ...) }, 0) end

local Cursor = {}
Cursor.__index = Cursor

function Cursor:left() return self.tvb:len() - self.at end

function Cursor:take(count)
  if count > self:left() then
    if self.tvb:len() < self.tvb:reported_len() then error({ cut = true, text = "the capture holds the beginning only" }, 0) end
    malformed("cut short: %d bytes expected, %d left", count, self:left())
  end
  local range = self.tvb:range(self.at, count)
  self.at = self.at + count
  return range
end

-- Shows a byte and returns it.
local function byte_of(cursor, tree, field)
  local range = cursor:take(1)
  local item = tree:add(field, range)
  return range:uint(), item
end

local function add_generated(tree, field, range, value) tree:add(field, range, value):set_generated() end

-- First and last chunk below a bin: its layer is the number of ones at its end.
local function below(uid)
  if uid >= 2 * CHUNKS_MAX then malformed("bin %.0f lies beyond the longest log", uid) end
  local width, rest = 1, uid
  while rest % 2 == 1 do width, rest = width * 2, (rest - 1) / 2 end
  local first = (uid - (width - 1)) / 2
  return first, first + width - 1
end

local function read_bin(tree, range)
  local value = range:len() == 4 and UInt64(range:uint()) or range:uint64()
  tree:add(f.bin, range)
  if range:bytes():tohex():lower() == string.rep("f", 2 * range:len()) then malformed("the empty bin") end
  return below(value:tonumber())
end

local function read_byte_range(tree, range, chunk)
  local first, last = range(0, 8):uint64(), range(8, 8):uint64()
  tree:add(f.first_byte, range(0, 8))
  tree:add(f.last_byte, range(8, 8))
  local stop, size, none = last + UInt64(1), UInt64(chunk), UInt64(0)
  if chunk == VARIABLE or stop == none or first % size ~= none or stop % size ~= none then
    malformed("the byte range is not of whole chunks")
  end
  return (first / size):tonumber(), (stop / size):tonumber() - 1
end

-- Reads a chunk specification (RFC 7574 section 4); returns its first and last chunk and its bytes.
local function read_range(cursor, tree, profile)
  local range = cursor:take(SPEC_BYTES[profile.addressing])
  local half, first, last = range:len() / 2, nil, nil
  if profile.addressing == 4 or profile.addressing == 2 then
    tree:add(f.first, range(0, half))
    tree:add(f.last, range(half, half))
    if half == 8 then
      first, last = range(0, 8):uint64():tonumber(), range(8, 8):uint64():tonumber()
    else
      first, last = range(0, 4):uint(), range(4, 4):uint()
    end
  else
    if profile.addressing == 1 then
      first, last = read_byte_range(tree, range, profile.chunk)
    else
      first, last = read_bin(tree, range)
    end
    if first <= last then
      add_generated(tree, f.first, range, UInt64(first))
      add_generated(tree, f.last, range, UInt64(last))
    end
  end
  if last >= CHUNKS_MAX then malformed("chunk %.0f lies beyond the longest log", last) end
  if first > last then malformed("the range %.0f to %.0f is empty", first, last) end
  add_generated(tree, f.count, range, UInt64(last - first + 1))
  return first, last, range
end

-- Reads the range of a hash: the leaves of one node (RFC 7574 section 5.4).
local function read_node(cursor, tree, profile)
  local first, last, range = read_range(cursor, tree, profile)
  local width, count = 1, last - first + 1
  while width < count do width = width * 2 end
  if width ~= count or first % width ~= 0 then malformed("%.0f chunks from %.0f are no node of the tree", count, first) end
  if profile.addressing ~= 0 and profile.addressing ~= 3 then
    add_generated(tree, f.bin, range, UInt64(2 * first + width - 1))
  end
  return first, last
end

local function span(first, last)
  return first == last and string.format(" %.0f", first) or string.format(" %.0f-%.0f", first, last)
end

local function only_range(cursor, tree, profile) return span(read_range(cursor, tree, profile)) end

local function only_type() return "" end

-- Bytes of a signature by the key in a swarm id; RSA's are as long as the modulus (RFC 3110).
local function signature_bytes(algorithm, id)
  if not IS_RSA[algorithm] then return SIGNATURE_BYTES[algorithm] end
  if not id or id:len() < 4 then return nil end
  local exponent, head = id:get_index(1), 2
  if exponent == 0 then exponent, head = id:get_index(2) * 256 + id:get_index(3), 4 end
  local modulus = id:len() - head - exponent
  return modulus > 0 and modulus or nil
end

local function read_version(field)
  return function(cursor, tree)
    if byte_of(cursor, tree, field) == 0 then malformed("version 0 is reserved") end
  end
end

-- Each reads an option's value into what the HANDSHAKE said.
local read_option = {
  [0] = read_version(f.version),
  [1] = read_version(f.minimum),
  [2] = function(cursor, tree, said)
    local length = cursor:take(2):uint()
    if length == 0 then return end
    local range = cursor:take(length)
    tree:add(f.swarm_id, range)
    said.swarm = range:bytes()
  end,
  [3] = function(cursor, tree)
    local method = byte_of(cursor, tree, f.integrity)
    if not INTEGRITY[method] then malformed("content integrity %d is unassigned", method) end
  end,
  [4] = function(cursor, tree, said)
    local code = byte_of(cursor, tree, f.hash_function)
    said.hash = HASH_BYTES[code] or malformed("hash function %d is unassigned", code)
  end,
  [5] = function(cursor, tree, said) said.algorithm = byte_of(cursor, tree, f.algorithm) end,
  [6] = function(cursor, tree, said)
    said.addressing = byte_of(cursor, tree, f.addressing)
    if not ADDRESSINGS[said.addressing] then malformed("chunk addressing %d is unassigned", said.addressing) end
  end,
  [7] = function(cursor, tree, said)
    if not said.addressing then malformed("a discard window without a chunk addressing") end
    local range = cursor:take(WINDOW_BYTES[said.addressing])
    local item = tree:add(f.window, range)
    if range:bytes():tohex():lower() == string.rep("f", 2 * range:len()) then item:append_text(" (nothing is discarded)") end
  end,
  [8] = function(cursor, tree)
    local length = cursor:take(1):uint()
    if length > 32 then malformed("a bitmap of %d bytes", length) end
    if length == 0 then return end
    local range, names = cursor:take(length), {}
    for bit = 0, 8 * length - 1 do
      if range:bitfield(bit, 1) == 1 then names[#names + 1] = TYPES[bit] or tostring(bit) end
    end
    tree:add(f.messages, range):append_text(" (" .. table.concat(names, " ") .. ")")
  end,
  [9] = function(cursor, tree, said)
    local range = cursor:take(4)
    tree:add(f.chunk_bytes, range)
    said.chunk = range:uint()
    if said.chunk == 0 then malformed("chunks of 0 bytes") end
  end,
}

-- Reads options up to the end option; what they say of the swarm.
local function read_options(cursor, tree)
  local said, previous = { count = 0 }, -1
  while true do
    local code = cursor:take(1)
    local number = code:uint()
    local item = tree:add(f.option, code)
    if number == 255 then return said end
    if number <= previous then malformed("option %d after option %d", number, previous) end
    local read = read_option[number] or malformed("option %d is not known", number)
    local start = cursor.at
    read(cursor, item, said)
    item:set_len(cursor.at - start + 1)
    said.count, said.first, previous = said.count + 1, said.first or number, number
  end
end

local function read_handshake(cursor, tree, profile, datagram)
  local range = cursor:take(4)
  tree:add(f.source, range)
  local source, said = range:uint(), read_options(cursor, tree)
  if source == 0 then
    add_generated(tree, f.closing, range, true)
    if said.count > 1 or (said.count == 1 and said.first ~= 0) then malformed("a closing HANDSHAKE with options") end
    return " closing"
  end
  if said.first ~= 0 then malformed("a HANDSHAKE without a version") end
  -- For the rest of this datagram too.
  profile.addressing = said.addressing or profile.addressing
  profile.chunk = said.chunk or profile.chunk
  profile.hash = said.hash or profile.hash
  profile.signature = said.algorithm and signature_bytes(said.algorithm, said.swarm) or profile.signature
  datagram.opens, datagram.swarm = source, said.swarm and said.swarm:tohex():lower() or datagram.swarm
  return string.format(" %08x", source)
end

local function read_data(cursor, tree, profile, datagram)
  local first, last = read_range(cursor, tree, profile)
  tree:add(f.time, cursor:take(8))
  if first ~= last then malformed("a DATA of %.0f chunks", last - first + 1) end
  local left = cursor:left()
  if left == 0 and cursor.tvb:len() == cursor.tvb:reported_len() then malformed("a DATA without bytes") end
  local whole = profile.chunk == VARIABLE and math.max(left, 1) or profile.chunk
  local cut = cursor.tvb:len() < cursor.tvb:reported_len()
  local count = cut and whole or math.min(whole, left)
  tree:add(f.chunk, cursor:take(count))
  datagram.short = datagram.short or (profile.chunk ~= VARIABLE and count < whole and count or nil)
  return span(first, last), first
end

local function read_want(cursor, tree, profile)
  local first, last = read_range(cursor, tree, profile)
  local class = byte_of(cursor, tree, f.class)
  if not CLASSES[class] then malformed("class %d is not known", class) end
  tree:add(f.deadline, cursor:take(4))
  return span(first, last) .. (byte_of(cursor, tree, f.hops) > 0 and " (wish)" or "")
end

local function read_have_map(cursor, tree)
  local munro, granules = cursor:take(8), cursor:take(8)
  tree:add(f.munro, munro)
  if munro:uint64():tonumber() >= MUNROS_MAX then malformed("the munro lies beyond the longest log") end
  local item, held, runs, begin = tree:add(f.granules, granules), 0, {}, nil
  local start = munro:uint64():tonumber() * MUNRO_CHUNKS
  for granule = 0, 64 do
    -- The lowest bit is the first granule.
    local has = granule < 64 and granules:bitfield(63 - granule, 1) == 1
    held = held + (has and 1 or 0)
    if has and not begin then begin = granule end
    if begin and not has then
      runs[#runs + 1] = span(start + begin * GRANULE_CHUNKS, start + granule * GRANULE_CHUNKS - 1)
      begin = nil
    end
  end
  item:append_text(string.format(" (%d of 64; chunks%s)", held, table.concat(runs, ",")))
  return string.format(" %.0f (%d of 64)", munro:uint64():tonumber(), held)
end

local function read_place(cursor, tree)
  tree:add(f.place_id, cursor:take(8))
  local level, item = byte_of(cursor, tree, f.level)
  local who = ({ [0] = "origin", [255] = "node" })[level] or "relay"
  item:append_text(" (" .. who .. ")")
  return " " .. who
end

local function read_circle(cursor, tree)
  local count = byte_of(cursor, tree, f.seats)
  if count > SEATS_MAX then malformed(string.format("a CIRCLE of %d seats", count)) end
  for _ = 1, count do
    tree:add(f.seat, cursor:take(8))
    tree:add(f.hops_to, cursor:take(1))
  end
  return string.format(" %d", count)
end

local function read_pex(field, count)
  return function(cursor, tree)
    tree:add(field, cursor:take(count))
    tree:add(f.port, cursor:take(2))
    return ""
  end
end

-- Each reads the body of a message and returns what stands behind its name in the list of packets.
local read_body = {
  [0] = read_handshake,
  [1] = read_data,
  [2] = function(cursor, tree, profile)
    local first, last = read_range(cursor, tree, profile)
    tree:add(f.delay, cursor:take(8))
    return span(first, last)
  end,
  [3] = only_range,
  [4] = function(cursor, tree, profile)
    local first, last = read_node(cursor, tree, profile)
    tree:add(f.hash, cursor:take(profile.hash))
    return span(first, last)
  end,
  [5] = read_pex(f.ipv4, 4),
  [6] = only_type,
  [7] = function(cursor, tree, profile)
    local first, last = read_node(cursor, tree, profile)
    tree:add_packet_field(f.signed_at, cursor:take(8), ENC_TIME_NTP + ENC_BIG_ENDIAN)
    tree:add(f.signature, cursor:take(profile.signature))
    return span(first, last)
  end,
  [8] = only_range,
  [9] = only_range,
  [10] = only_type,
  [11] = only_type,
  [12] = read_pex(f.ipv6, 16),
  [13] = function(cursor, tree)
    local length = cursor:take(2):uint()
    if length > 0 then tree:add(f.certificate, cursor:take(length)) end
    return ""
  end,
  [14] = read_want,
  [15] = only_range,
  [16] = read_have_map,
  [17] = read_place,
  [18] = read_circle,
}

-- The rules that span messages (RFC 7574 sections 3.1 and 8.6), before one is read.
local function check_order(kind, channel, datagram)
  if kind == 0 and datagram.count > 0 then malformed("a HANDSHAKE that is not the first message") end
  if kind ~= 0 and datagram.count == 0 and channel == 0 then malformed("channel 0 without a HANDSHAKE") end
  if datagram.data == 1 and kind ~= 1 then datagram.not_last = true end
end

local function read_message(cursor, tree, profile, channel, datagram)
  local kind = cursor:take(1)
  local number = kind:uint()
  tree:add(f.kind, kind)
  check_order(number, channel, datagram)
  local read = read_body[number] or malformed("message type %d is not known", number)
  tree:set_text(TYPES[number])
  local words, chunk = read(cursor, tree, profile, datagram)
  datagram.count = datagram.count + 1
  datagram.data = datagram.data + (number == 1 and 1 or 0)
  if datagram.data > 1 and datagram.short then malformed("a short chunk among several DATA messages") end
  return TYPES[number], words, number == 1 and chunk or nil
end

-- Names in the list of packets. The same message several times in a row is counted; a row of DATA is one range.
local function note(list, name, words, chunk)
  local last = list[#list]
  if last and last.name == name and chunk and last.last and last.last + 1 == chunk then
    last.last, last.words = chunk, span(last.first, chunk)
  elseif last and last.name == name and not chunk then
    last.count = last.count + 1
  else
    list[#list + 1] = { name = name, words = words, count = 1, first = chunk, last = chunk }
  end
end

local function listed(list)
  local words = {}
  for index, entry in ipairs(list) do
    if index > 8 then
      words[#words + 1] = "..."
      break
    end
    words[#words + 1] = entry.name .. entry.words .. (entry.count > 1 and " and " .. entry.count - 1 .. " more" or "")
  end
  return table.concat(words, ", ")
end

-- A sender's capture shows several datagrams of a channel as one where the kernel or the network card cuts them
-- (UDP_SEGMENT): each begins with the channel, which no message does.
local function begins_another(cursor, channel)
  return channel ~= 0 and cursor.tvb:reported_len() > DATAGRAM_BYTES_MAX and cursor:left() >= 4
    and cursor.tvb(cursor.at, 4):uint() == channel
end

local function read_datagram(cursor, pinfo, tree, list)
  local start = cursor.at
  local range = cursor:take(4)
  local channel = range:uint()
  tree:add(f.channel, range)
  local known = channels[key_of(pinfo.dst, pinfo.dst_port, channel)]
  local profile = default_profile()
  for name, value in pairs(known and known.profile or {}) do profile[name] = value end
  local datagram = { count = 0, data = 0, swarm = known and known.swarm }
  if known then tree:add(f.opened_in, known.frame):set_generated() end
  if cursor:left() == 0 then
    if channel == 0 then malformed("channel 0 without a HANDSHAKE") end
    tree:add(f.keep_alive, range)
    note(list, "keep-alive", "")
  end
  while cursor:left() > 0 and not (datagram.count > 0 and begins_another(cursor, channel)) do
    local begin = cursor.at
    local item = tree:add(f.message, cursor.tvb:range(begin))
    local fine, name, words, chunk = pcall(read_message, cursor, item, profile, channel, datagram)
    item:set_len(cursor.at - begin)
    if not fine then
      if type(name) ~= "table" then error(name, 0) end
      note(list, name.cut and "[cut]" or "[malformed]", "")
      item:add_proto_expert_info(name.cut and e.cut or e.malformed, name.text)
      return false
    end
    add_generated(item, f.bytes, cursor.tvb(begin, 1), cursor.at - begin)
    item:append_text(words)
    note(list, name, words, chunk)
  end
  if datagram.data == 1 and datagram.not_last then malformed("the only DATA message is not the last message") end
  if datagram.swarm then add_generated(tree, f.swarm, range, datagram.swarm) end
  if datagram.opens then
    local key = key_of(pinfo.src, pinfo.src_port, datagram.opens)
    channels[key] = channels[key] or { profile = profile, swarm = datagram.swarm, frame = pinfo.number }
    channels[key].swarm = channels[key].swarm or datagram.swarm
  end
  tree:set_len(cursor.at - start)
  return true
end

local function is_lan(tvb) return tvb:len() >= 8 and tvb(0, 8):string() == LAN_MAGIC end

local function read_lan(cursor, tree)
  cursor:take(8)
  tree:add(f.lan_nonce, cursor:take(8))
  tree:add(f.lan_port, cursor:take(2))
  local keys = 0
  while cursor:left() > 0 do
    tree:add(f.lan_key, cursor:take(16))
    keys = keys + 1
  end
  return keys
end

function distd.dissector(tvb, pinfo, parent)
  pinfo.cols.protocol = "distd"
  local cursor, list, datagrams = setmetatable({ tvb = tvb, at = 0 }, Cursor), {}, 0
  local fine, problem = pcall(function()
    if is_lan(tvb) then
      local tree = parent:add(distd, tvb(), "distd, a node says which swarms it is in")
      note(list, "local network: swarms", string.format(" (%d)", read_lan(cursor, tree)))
      return
    end
    repeat
      local tree = parent:add(distd, tvb:range(cursor.at))
      datagrams = datagrams + 1
    until not read_datagram(cursor, pinfo, tree, list) or cursor:left() == 0
  end)
  if not fine then
    if type(problem) ~= "table" then error(problem, 0) end
    note(list, problem.cut and "[cut]" or "[malformed]", "")
    parent:add_proto_expert_info(problem.cut and e.cut or e.malformed, problem.text)
  end
  pinfo.cols.info = listed(list) .. (datagrams > 1 and string.format(" (%d datagrams)", datagrams) or "")
  return tvb:len()
end

-- A datagram 1 (channel 0, HANDSHAKE, version, minimum version, swarm id), or one for a channel that is known.
local function is_ours(tvb, pinfo)
  if is_lan(tvb) then return true end
  if tvb:len() < 4 then return false end
  local channel = tvb(0, 4):uint()
  if channel ~= 0 then return channels[key_of(pinfo.dst, pinfo.dst_port, channel)] ~= nil end
  return tvb:len() >= 17 and tvb(4, 1):uint() == 0 and tvb(5, 4):uint() ~= 0 and tvb(9, 4):uint() == 0x00010101
    and tvb(13, 1):uint() == 2
end

distd:register_heuristic("udp", function(tvb, pinfo, tree)
  if not is_ours(tvb, pinfo) then return false end
  distd.dissector(tvb, pinfo, tree)
  pinfo.conversation = distd
  return true
end)

DissectorTable.get("udp.port"):add(7574, distd)
