package cloudwatch

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
)

// protocol is how a request came and its answer goes.
type protocol int

const (
	query   protocol = iota // AWS query: a form, and XML
	jsonRPC                 // AWS JSON 1.0
	rpcCBOR                 // Smithy RPC v2 with CBOR
)

const (
	xmlNamespace = "http://monitoring.amazonaws.com/doc/2010-08-01/"
	shapePrefix  = "com.amazonaws.cloudwatch#"
)

// failed is an answer other than success: the code of the query protocol, and the name of
// the error's shape where that is another.
type failed struct {
	code, shape, message string
	status               int
}

func (e *failed) Error() string { return e.code + ": " + e.message }

func refused(code, shape, format string, args ...any) error {
	return &failed{code, shape, fmt.Sprintf(format, args...), http.StatusBadRequest}
}

func malformed(format string, args ...any) error {
	return refused("InvalidParameterValue", "InvalidParameterValueException", format, args...)
}

func missing(name string) error {
	return refused("MissingParameter", "MissingRequiredParameterException", "The parameter %s is required.", name)
}

func combination(format string, args ...any) error {
	return refused("InvalidParameterCombination", "InvalidParameterCombinationException", format, args...)
}

func clip(s string) string { return s[:min(len(s), 128)] }

// encode writes an answer in a protocol.
func encode(p protocol, operation, id string, out tree) (kind string, body []byte, err error) {
	switch p {
	case rpcCBOR:
		return "application/cbor", cbor.Encode(toCBOR(out)), nil
	case jsonRPC:
		body, err = json.Marshal(toJSON(out))
		return "application/x-amz-json-1.0", body, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%[1]sResponse xmlns=%[2]q><%[1]sResult>", operation, xmlNamespace)
	writeXML(&b, out)
	fmt.Fprintf(&b, "</%[1]sResult><ResponseMetadata><RequestId>%[2]s</RequestId></ResponseMetadata></%[1]sResponse>\n", operation, id)
	return "text/xml", b.Bytes(), nil
}

// encodeError writes a refusal in a protocol.
func encodeError(p protocol, e *failed, id string) (kind string, body []byte, err error) {
	out := tree{"__type": shapePrefix + e.shape, "message": e.message}
	switch p {
	case rpcCBOR:
		return "application/cbor", cbor.Encode(toCBOR(out)), nil
	case jsonRPC:
		body, err = json.Marshal(out)
		return "application/x-amz-json-1.0", body, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "<ErrorResponse xmlns=%q><Error><Type>%s</Type><Code>%s</Code><Message>", xmlNamespace, e.fault(), e.code)
	xml.EscapeText(&b, []byte(e.message)) //nolint:errcheck // a buffer takes everything
	fmt.Fprintf(&b, "</Message></Error><RequestId>%s</RequestId></ErrorResponse>\n", id)
	return "text/xml", b.Bytes(), nil
}

func (e *failed) fault() string {
	if e.status >= http.StatusInternalServerError {
		return "Receiver"
	}
	return "Sender"
}

func writeXML(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case tree:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			b.WriteString("<" + name + ">")
			writeXML(b, v[name])
			b.WriteString("</" + name + ">")
		}
	case []any:
		for _, item := range v {
			b.WriteString("<member>")
			writeXML(b, item)
			b.WriteString("</member>")
		}
	case time.Time:
		b.WriteString(v.UTC().Format("2006-01-02T15:04:05Z"))
	case float64:
		b.WriteString(strconv.FormatFloat(v, 'g', -1, 64))
	case string:
		xml.EscapeText(b, []byte(v)) //nolint:errcheck // a buffer takes everything
	}
}

func toJSON(v any) any {
	switch v := v.(type) {
	case tree:
		out := make(map[string]any, len(v))
		for name := range v {
			out[name] = toJSON(v[name])
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = toJSON(v[i])
		}
		return out
	case time.Time:
		return float64(v.UnixMilli()) / 1000
	}
	return v
}

func toCBOR(v any) cbor.Value {
	switch v := v.(type) {
	case tree:
		out := make(cbor.Map, len(v))
		for name := range v {
			out[name] = toCBOR(v[name])
		}
		return out
	case []any:
		out := make(cbor.List, len(v))
		for i := range v {
			out[i] = toCBOR(v[i])
		}
		return out
	case time.Time:
		return &cbor.Tag{ID: 1, Value: cbor.Float64(float64(v.UnixMilli()) / 1000)}
	case float64:
		return cbor.Float64(v)
	case string:
		return cbor.String(v)
	}
	return &cbor.Nil{}
}
