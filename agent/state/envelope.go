package state

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
)

// An envelope is {version byte, CRC-32C big endian, payload}. The checksum covers the
// path of the value, its version and its payload.
const (
	envelopeSize = 5
	encodingJSON = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns v as JSON behind room for an envelope, which seal fills in.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	buf.Write(make([]byte, envelopeSize))
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	b := buf.Bytes()
	return b[:len(b)-1], nil // without the encoder's newline
}

// seal fills in the envelope in front of the payload.
func seal(path string, value []byte) {
	value[0] = encodingJSON
	binary.BigEndian.PutUint32(value[1:], checksum(path, value))
}

// unseal checks an envelope and returns its payload.
func unseal(path string, value []byte) ([]byte, error) {
	if len(value) < envelopeSize {
		return nil, fmt.Errorf("%q: %d bytes are too few for a value", path, len(value))
	}
	if value[0] != encodingJSON {
		return nil, fmt.Errorf("%q: encoding %d is unknown", path, value[0])
	}
	if crcOf(value) != checksum(path, value) {
		return nil, fmt.Errorf("%q: wrong checksum", path)
	}
	return value[envelopeSize:], nil
}

// decode unseals a value and reads its JSON into v.
func decode(path string, value []byte, v any) error {
	payload, err := unseal(path, value)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

func checksum(path string, value []byte) uint32 {
	crc := crc32.Update(0, castagnoli, []byte(path))
	crc = crc32.Update(crc, castagnoli, []byte{0, value[0]})
	return crc32.Update(crc, castagnoli, value[envelopeSize:])
}

func crcOf(value []byte) uint32 { return binary.BigEndian.Uint32(value[1:]) }

// total adds up every value of the database so that it can be kept current by each
// write without reading the others.
type total struct {
	Values uint64
	Sum    uint64
}

var errShort = errors.New("a stored value is shorter than its envelope")

func (t *total) add(value []byte) {
	t.Values++
	t.Sum += scatter(crcOf(value))
}

func (t *total) remove(value []byte) error {
	if len(value) < envelopeSize {
		return errShort
	}
	t.Values--
	t.Sum -= scatter(crcOf(value))
	return nil
}

// scatter spreads 32 bits over 64 (the finalizer of SplitMix64), so that changes of
// several values do not cancel out in the sum.
func scatter(crc uint32) uint64 {
	z := uint64(crc) + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
