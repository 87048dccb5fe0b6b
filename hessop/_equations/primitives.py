"""What primitives are, by name: the one table that engines, prices and rewrites ask.

A set says what holds of each of its members, whatever their parameters; a member that needs a reason has it beside it.
Depends on nothing. Must never hold rules: what to do with a primitive is the business of whoever asks.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- what carries a jaxpr ---

# Their meaning is that of the jaxpr. Not custom_jvp_call and custom_vjp_call: inlining those would drop the user's rule from
# any further differentiation.
REMAT = _names("remat remat2 checkpoint")
CALLS = REMAT | _names("jit pjit closed_call core_call core_closed_call eval_jaxpr")
# They carry a derivative rule of their own.
RULED = _names("custom_jvp_call custom_vjp_call")

# --- where entries go ---

# The same entries in the same order under another shape: no work.
VIEWS = _names("reshape squeeze expand_dims")
# Each entry of the result is one of the operand, and each of the operand is there; `tile` is of JAX 0.12.
RELABELS = VIEWS | _names("broadcast_in_dim transpose tile")
# The operand, perhaps in another buffer or on other devices. (`pvary` exists in some versions of JAX only.)
IDENTITIES = _names("copy copy_p optimization_barrier sharding_constraint device_put pvary")
# A copy: some entries, in some order, of one operand or of several. XLA makes them inside of the kernel that reads them.
COPIES = VIEWS | _names("broadcast_in_dim transpose slice iota rev concatenate pad copy copy_p")

# --- entry by entry ---

COMPARISONS = _names("eq ne lt le gt ge")
LOGIC = _names("and or not")
# Entry k of the result depends on entry k of each operand alone (of which some may be scalars: clamp, select_n).
ELEMENTWISE = (
    COMPARISONS
    | LOGIC
    | _names(
        """
        xor shift_left shift_right_arithmetic shift_right_logical population_count clz
        add add_any sub mul div rem neg abs sign max min clamp select_n nextafter
        integer_pow pow square sqrt rsqrt cbrt exp exp2 expm1 log log1p logistic
        sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh
        erf erfc erf_inv lgamma digamma polygamma zeta igamma igammac regularized_incomplete_beta bessel_i0e bessel_i1e
        floor ceil round is_finite real imag conj complex convert_element_type reduce_precision copy copy_p stop_gradient
        """
    )
)
# a o b is b o a, to the last bit. Not max and min: JAX does not say which of 0.0 and -0.0 it returns.
COMMUTATIVE = _names("add add_any mul and or xor eq ne")
# f(-a) is -f(a), to the last bit. Not sin or tanh: XLA's polynomials promise nothing of the kind.
ODD = _names("sign round copy copy_p reduce_precision real imag stop_gradient")
# Finite first and second derivatives wherever the operands are finite: bilinear, piecewise linear or entire.
SMOOTH = _names(
    """
    add add_any sub mul neg abs max min clamp select_n square sign floor ceil round is_finite
    convert_element_type reduce_precision copy copy_p real imag complex stop_gradient
    exp exp2 expm1 sin cos sinh cosh tanh atan asinh logistic erf erfc
    """
)
# Elementwise, and so expensive that XLA does not compute it again in each kernel that reads it.
EXPENSIVE = _names(
    """
    div rem pow sqrt rsqrt cbrt exp exp2 expm1 log log1p logistic
    sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc erf_inv lgamma digamma
    """
)

# --- effects ---

# Without an effect, and with another result each time.
NEVER_EQUAL = _names("rng_uniform")
