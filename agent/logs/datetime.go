package logs

import (
	"fmt"
	"regexp"
	"strings"
)

// conversions are those of strftime that awslogs-datetime-format takes (Docker's
// documentation of the awslogs driver), as regular expressions.
var conversions = map[byte]string{
	'A': `(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)`,
	'a': `(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)`,
	'B': `(?:January|February|March|April|May|June|July|August|September|October|November|December)`,
	'b': `(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)`,
	'd': `(?:0[1-9]|[12][0-9]|3[01])`,
	'f': `\d{6}`,
	'H': `(?:[01][0-9]|2[0-3])`,
	'I': `(?:0[1-9]|1[0-2])`,
	'j': `(?:00[1-9]|0[1-9][0-9]|[12][0-9]{2}|3[0-5][0-9]|36[0-6])`,
	'L': `\.\d{3}`,
	'M': `[0-5][0-9]`,
	'm': `(?:0[1-9]|1[0-2])`,
	'p': `[AP]M`,
	'S': `[0-5][0-9]`,
	'w': `[0-6]`,
	'Y': `\d{4}`,
	'y': `\d{2}`,
	'Z': `[A-Z]{1,4}T`,
	'z': `[+-]\d{4}`,
	'%': `%`,
}

// DatetimePattern turns an awslogs-datetime-format into the expression that begins an
// event.
func DatetimePattern(format string) (*regexp.Regexp, error) {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteString(regexp.QuoteMeta(format[i : i+1]))
			continue
		}
		i++
		if i == len(format) {
			return nil, fmt.Errorf("%q ends in %%", format)
		}
		c, ok := conversions[format[i]]
		if !ok {
			return nil, fmt.Errorf("%q has the unknown conversion %%%c", format, format[i])
		}
		b.WriteString(c)
	}
	return regexp.Compile(b.String())
}
