package series

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/klauspost/compress/zstd"
)

// A frame is all rows of one kind in one interval: the number of rows, and for each the
// number of its name in the segment, the number of its values, and the values. A value is
// a byte of its metric and two flags, the number of samples unless it is one, and then
// their minimum, maximum and sum, or the one sample alone, each as a float of four bytes,
// or of eight where four do not hold them all.
const (
	flagOne  = 1 << 6
	flagWide = 1 << 7
	flags    = flagOne | flagWide
)

// maxFrame bounds a frame in bytes, compressed or not: some hundred bytes for each of
// the 100,000 containers that are kept at most.
const maxFrame = 64 << 20

var errFrame = errors.New("a frame of the series is damaged")

// numbered is a row by the number of its name.
type numbered struct {
	id     uint32
	values []Value
}

func appendFrame(b []byte, rows []numbered) []byte {
	b = binary.AppendUvarint(b, uint64(len(rows)))
	for _, r := range rows {
		b = binary.AppendUvarint(b, uint64(r.id))
		b = binary.AppendUvarint(b, uint64(len(r.values)))
		for _, v := range r.values {
			b = appendValue(b, v)
		}
	}
	return b
}

func appendValue(b []byte, v Value) []byte {
	s, head := v.Set, byte(v.Metric)
	one := s.Count == 1
	if one {
		head |= flagOne
	}
	if wide(s.Sum) || !one && (wide(s.Min) || wide(s.Max)) {
		head |= flagWide
	}
	b = append(b, head)
	if !one {
		b = binary.AppendUvarint(b, s.Count)
		b = appendFloat(b, s.Min, head)
		b = appendFloat(b, s.Max, head)
	}
	return appendFloat(b, s.Sum, head)
}

func wide(v float64) bool { return float64(float32(v)) != v }

func appendFloat(b []byte, v float64, head byte) []byte {
	if head&flagWide != 0 {
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
}

// reader walks over a frame.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) float(head byte) float64 {
	if head&flagWide != 0 {
		if b := r.take(8); b != nil {
			return math.Float64frombits(binary.LittleEndian.Uint64(b))
		}
	} else if b := r.take(4); b != nil {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return 0
}

func (r *reader) value() (v Value) {
	b := r.take(1)
	if b == nil {
		return v
	}
	head := b[0]
	v.Metric = Metric(head &^ flags)
	if head&flagOne != 0 {
		v.Set = One(r.float(head))
		return v
	}
	v.Set.Count = r.number()
	v.Set.Min, v.Set.Max = r.float(head), r.float(head)
	v.Set.Sum = r.float(head)
	return v
}

// eachRow calls f with the number of each row's name and its values, which are only good
// until f returns. Where want is false for a number, its values are not read.
func eachRow(frame []byte, want func(id uint32) bool, f func(id uint32, values []Value)) error {
	r := reader{b: frame}
	var values []Value
	for n := r.number(); n > 0 && !r.bad; n-- {
		id, count := r.number(), r.number()
		if id > math.MaxUint32 || count > uint64(Metrics) {
			return errFrame
		}
		values = values[:0]
		take := want == nil || want(uint32(id))
		for range count {
			v := r.value()
			if take && v.Metric < Metrics {
				values = append(values, v)
			}
		}
		if take && !r.bad {
			f(uint32(id), values)
		}
	}
	if r.bad {
		return errFrame
	}
	return nil
}

// codec compresses; it may be used by several at once.
type codec struct {
	to   *zstd.Encoder
	from *zstd.Decoder
}

func newCodec() (codec, error) {
	to, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(1<<20))
	if err != nil {
		return codec{}, err
	}
	from, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFrame))
	return codec{to, from}, err
}

func (c codec) pack(b []byte) []byte { return c.to.EncodeAll(b, nil) }

func (c codec) unpack(b []byte) ([]byte, error) {
	out, err := c.from.DecodeAll(b, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	return out, nil
}

func (c codec) close() {
	c.from.Close()
	c.to.Close() //nolint:errcheck // it holds no output
}

// appendSets and eachSet are lists of the metrics of rows.
func appendSets(b []byte, sets []MetricSet) []byte {
	for _, s := range sets {
		b = binary.AppendUvarint(b, uint64(s))
	}
	return b
}

func eachSet(b []byte, f func(MetricSet)) error {
	r := reader{b: b}
	for len(r.b) > 0 {
		f(MetricSet(r.number()))
	}
	if r.bad {
		return errFrame
	}
	return nil
}

// appendNames and eachName are lists of names, each with its length before it.
func appendNames(b []byte, names []string) []byte {
	for _, n := range names {
		b = binary.AppendUvarint(b, uint64(len(n)))
		b = append(b, n...)
	}
	return b
}

func eachName(b []byte, f func(string)) error {
	r := reader{b: b}
	for len(r.b) > 0 {
		n := r.number()
		if n > uint64(len(r.b)) {
			return errFrame
		}
		f(string(r.take(int(n))))
	}
	if r.bad {
		return errFrame
	}
	return nil
}
