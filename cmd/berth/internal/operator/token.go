package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"berth.dev/berth/wire/join"
)

// tokenListLimit bounds the answer with all tokens, in bytes.
const tokenListLimit = 8 << 20

var errOldCluster = errors.New("the cluster's answer is none to a request about tokens; are cluster and berth of the same version?")

// CreateToken makes a token with which hosts join.
func (c *Client) CreateToken(ctx context.Context, q join.TokenRequest) (join.TokenAnswer, error) {
	var out join.TokenAnswer
	body, err := json.Marshal(q)
	if err != nil {
		return out, err
	}
	answer, err := c.call(ctx, http.MethodPost, join.TokensPath, body, join.MaxMessage)
	if err != nil {
		return out, fmt.Errorf("make a join token: %w", err)
	}
	if json.Unmarshal(answer, &out) != nil || out.Token == "" {
		return out, errOldCluster
	}
	return out, nil
}

// Tokens lists the tokens.
func (c *Client) Tokens(ctx context.Context) ([]join.TokenInfo, error) {
	answer, err := c.call(ctx, http.MethodGet, join.TokensPath, nil, tokenListLimit)
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", err)
	}
	var out []join.TokenInfo
	if json.Unmarshal(answer, &out) != nil {
		return nil, errOldCluster
	}
	return out, nil
}

// RevokeToken ends a token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	if _, err := c.call(ctx, http.MethodDelete, join.TokensPath+"/"+url.PathEscape(id), nil, join.MaxMessage); err != nil {
		return fmt.Errorf("revoke a join token: %w", err)
	}
	return nil
}
