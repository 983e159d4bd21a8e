// Activations on vectors of fp32, with the derivatives that the backward pass needs.
#pragma once
#include "problem.h"
#include "simd.h"

namespace MIXTURA_VARIANT {

// exp, to 1 ulp or so, for arguments in [-87, 88]; zero and infinity beyond. A NaN stays one.
MIXTURA_INLINE V exponential(V argument) {
  const I below = argument < splat(-87.0f), above = argument > splat(88.0f);
  const V x = choose(below | above, splat(0.0f), argument);
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const V shifted = x * splat(1.44269504f) + magic;
  const V n = shifted - magic;
  const V r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);  // ln 2 in two parts
  V p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  const I exponent = ((I)shifted - (I)magic + 127) << 23;
  const V value = choose(above, splat(__builtin_inff()), p * (V)exponent);
  return choose(below, splat(0.0f), value);
}

MIXTURA_INLINE V sigmoid(V x) { return splat(1.0f) / (splat(1.0f) + exponential(-x)); }

// The normal distribution function and density. The tail below -|z| is density(z) times a function of 1 / (1 + 0.3|z|)
// that a polynomial of degree 8 follows to 6e-8 (fitted to scipy's erfcx), so small values keep their digits.
MIXTURA_INLINE V normal(V z, V* density) {
  const V size = (V)((I)z & 0x7fffffff);
  const V t = splat(1.0f) / (splat(1.0f) + splat(0.3f) * size);
  V p = splat(0.0383784026f);
  p = p * t + splat(-0.169166639f);
  p = p * t + splat(0.22866109f);
  p = p * t + splat(-0.0765075535f);
  p = p * t + splat(0.142536208f);
  p = p * t + splat(0.0946832597f);
  p = p * t + splat(0.121920399f);
  p = p * t + splat(0.11948768f);
  p = p * t + splat(7.16925297e-06f);
  const V bell = exponential(splat(-0.5f) * z * z);
  const V tail = bell * p;
  *density = splat(0.398942280f) * bell;
  return choose(z > splat(0.0f), splat(1.0f) - tail, tail);
}

constexpr float CLAMP = 7.0f;  // of the clamped kind, as gpt-oss has it

// f(z), and its slope. The gated kinds use the function of their gate.
template <int KIND>
MIXTURA_INLINE V activate(V z, V* slope) {
  if (KIND == MIXTURA_RELU) {
    const I off = z <= splat(0.0f);  // a NaN is not
    *slope = choose(off, splat(0.0f), splat(1.0f));
    return choose(off, splat(0.0f), z);
  }
  if (KIND == MIXTURA_GELU || KIND == MIXTURA_GEGLU) {
    V density;
    const V share = normal(z, &density);
    *slope = share + z * density;
    return z * share;
  }
  if (KIND == MIXTURA_GELU_TANH || KIND == MIXTURA_GEGLU_TANH) {
    // (1 + tanh u) / 2 is the sigmoid of 2 u, with u = sqrt(2 / pi) (z + 0.044715 z^3). Far out, where z^3 would
    // overflow, the share is 0 or 1 and no longer moves.
    const I far = (V)((I)z & 0x7fffffff) > splat(16.0f);
    const V near = choose(far, splat(0.0f), z), square = near * near;
    const V inner = sigmoid(splat(1.59576912f) * near * (splat(1.0f) + splat(0.044715f) * square));
    const V share = choose(far, choose(z > splat(0.0f), splat(1.0f), splat(0.0f)), inner);
    const V steep = splat(1.59576912f) * (splat(1.0f) + splat(3 * 0.044715f) * square);
    *slope = share + near * share * (splat(1.0f) - share) * steep;
    return z * share;
  }
  if (KIND == MIXTURA_CLAMPED_SWIGLU) {
    const I above = z > splat(CLAMP);  // behind a clamp nothing moves; on its edge it does
    const V gate = choose(above, splat(CLAMP), z), share = sigmoid(gate * splat(1.702f));
    *slope = choose(above, splat(0.0f), share * (splat(1.0f) + splat(1.702f) * gate * (splat(1.0f) - share)));
    return gate * share;
  }
  const V share = sigmoid(z);
  *slope = share * (splat(1.0f) + z * (splat(1.0f) - share));
  return z * share;
}

// What a gate is multiplied with, made of the other half, and its slope.
template <int KIND>
MIXTURA_INLINE V gated_by(V z, V* slope) {
  if (KIND != MIXTURA_CLAMPED_SWIGLU) {
    *slope = splat(1.0f);
    return z;
  }
  const I above = z > splat(CLAMP), below = z < splat(-CLAMP);
  *slope = choose(above | below, splat(0.0f), splat(1.0f));
  return choose(above, splat(CLAMP + 1), choose(below, splat(1 - CLAMP), z + splat(1.0f)));
}

}  // namespace MIXTURA_VARIANT
