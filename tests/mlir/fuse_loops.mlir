module @jit_run attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 4 : i32, neuron.mesh = {axes = [["tp", 4]], device_ids = array<i64>}} {
  func.func public @main(%arg0: tensor<4x8xf32> {neuron.global_type = tensor<4x8xf32>}, %arg1: tensor<3x8x8xf32> {neuron.dim_axes = [[], ["tp"], []], neuron.global_type = tensor<3x32x8xf32>}, %arg2: tensor<3x1x2xf32> {neuron.dim_axes = [[], [], ["tp"]], neuron.global_type = tensor<3x1x8xf32>, tf.aliasing_output = 1 : i32}, %arg3: tensor<i32> {neuron.global_type = tensor<i32>}) -> (tensor<4x8xf32> {neuron.global_type = tensor<4x8xf32>}, tensor<3x1x2xf32> {neuron.dim_axes = [[], [], ["tp"]], neuron.global_type = tensor<3x1x8xf32>}, tensor<3xf32> {neuron.global_type = tensor<3xf32>}) {
    %c = stablehlo.constant dense<2> : tensor<i32>
    %c_0 = stablehlo.constant dense<1> : tensor<i32>
    %c_1 = stablehlo.constant dense<3> : tensor<i32>
    %c_2 = stablehlo.constant dense<0> : tensor<i32>
    %0 = stablehlo.composite "neuron.data_movement"  {decomposition = @neuron.data_movement.1} : () -> tensor<3xf32>
    %1:5 = stablehlo.while(%iterArg = %c_2, %iterArg_3 = %arg0, %iterArg_4 = %arg2, %iterArg_5 = %c_2, %iterArg_6 = %0) : tensor<i32>, tensor<4x8xf32>, tensor<3x1x2xf32>, tensor<i32>, tensor<3xf32>
    cond {
      %8 = stablehlo.compare LT, %iterArg, %c_1, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %8 : tensor<i1>
    } do {
      %8 = stablehlo.composite "neuron.matmul" %iterArg_3, %arg1, %iterArg {decomposition = @neuron.matmul.0} : (tensor<4x8xf32>, tensor<3x8x8xf32>, tensor<i32>) -> tensor<4x8xf32>
      %9 = "stablehlo.all_reduce"(%8) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
      ^bb0(%arg4: tensor<f32>, %arg5: tensor<f32>):
        %18 = stablehlo.add %arg4, %arg5 : tensor<f32>
        stablehlo.return %18 : tensor<f32>
      }) : (tensor<4x8xf32>) -> tensor<4x8xf32>
      %10 = stablehlo.compare LT, %iterArg_5, %c_2, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      %11 = stablehlo.add %iterArg_5, %c_1 : tensor<i32>
      %12 = stablehlo.select %10, %11, %iterArg_5 : tensor<i1>, tensor<i32>
      %13 = stablehlo.add %iterArg_5, %c_0 : tensor<i32>
      %14:2 = stablehlo.composite "neuron.reduce" %iterArg_3, %9 {decomposition = @neuron.reduce.0} : (tensor<4x8xf32>, tensor<4x8xf32>) -> (tensor<4x8xf32>, tensor<f32>)
      %15 = stablehlo.composite "neuron.data_movement" %iterArg_6, %14#1, %iterArg {decomposition = @neuron.data_movement.0} : (tensor<3xf32>, tensor<f32>, tensor<i32>) -> tensor<3xf32>
      %16 = stablehlo.add %iterArg, %c_0 : tensor<i32>
      %17 = stablehlo.composite "neuron.elementwise" %14#0, %arg1, %iterArg, %iterArg_4, %12 {decomposition = @neuron.elementwise.0} : (tensor<4x8xf32>, tensor<3x8x8xf32>, tensor<i32>, tensor<3x1x2xf32>, tensor<i32>) -> tensor<3x1x2xf32>
      stablehlo.return %16, %14#0, %17, %13, %15 : tensor<i32>, tensor<4x8xf32>, tensor<3x1x2xf32>, tensor<i32>, tensor<3xf32>
    }
    %2 = stablehlo.composite "neuron.control" %1#1 {decomposition = @neuron.control.0} : (tensor<4x8xf32>) -> tensor<4x8xf32>
    %3 = stablehlo.compare GT, %arg3, %c, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
    %4 = stablehlo.convert %3 : (tensor<i1>) -> tensor<i32>
    %5 = "stablehlo.case"(%4) ({
      %8 = stablehlo.composite "neuron.elementwise" %2 {decomposition = @neuron.elementwise.1} : (tensor<4x8xf32>) -> tensor<4x8xf32>
      stablehlo.return %8 : tensor<4x8xf32>
    }, {
      %8 = stablehlo.composite "neuron.elementwise" %2, %arg1 {decomposition = @neuron.elementwise.2} : (tensor<4x8xf32>, tensor<3x8x8xf32>) -> tensor<4x8xf32>
      %9 = "stablehlo.all_reduce"(%8) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
      ^bb0(%arg4: tensor<f32>, %arg5: tensor<f32>):
        %10 = stablehlo.add %arg4, %arg5 : tensor<f32>
        stablehlo.return %10 : tensor<f32>
      }) : (tensor<4x8xf32>) -> tensor<4x8xf32>
      stablehlo.return %9 : tensor<4x8xf32>
    }) : (tensor<i32>) -> tensor<4x8xf32>
    %6 = stablehlo.clamp %c_2, %arg3, %c : tensor<i32>
    %7 = "stablehlo.case"(%6) ({
      %8 = stablehlo.composite "neuron.elementwise" %5 {decomposition = @neuron.elementwise.3} : (tensor<4x8xf32>) -> tensor<4x8xf32>
      stablehlo.return %8 : tensor<4x8xf32>
    }, {
      %8 = "stablehlo.all_reduce"(%5) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
      ^bb0(%arg4: tensor<f32>, %arg5: tensor<f32>):
        %9 = stablehlo.add %arg4, %arg5 : tensor<f32>
        stablehlo.return %9 : tensor<f32>
      }) : (tensor<4x8xf32>) -> tensor<4x8xf32>
      stablehlo.return %8 : tensor<4x8xf32>
    }, {
      %8 = stablehlo.composite "neuron.elementwise" %5 {decomposition = @neuron.elementwise.4} : (tensor<4x8xf32>) -> tensor<4x8xf32>
      stablehlo.return %8 : tensor<4x8xf32>
    }) : (tensor<i32>) -> tensor<4x8xf32>
    return %7, %1#2, %1#4 : tensor<4x8xf32>, tensor<3x1x2xf32>, tensor<3xf32>
  }
  func.func private @neuron.matmul.0(%arg0: tensor<4x8xf32>, %arg1: tensor<3x8x8xf32>, %arg2: tensor<i32>) -> tensor<4x8xf32> {
    %c = stablehlo.constant dense<0> : tensor<i32>
    %0 = stablehlo.dynamic_slice %arg1, %arg2, %c, %c, sizes = [1, 8, 8] : (tensor<3x8x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x8xf32>
    %1 = stablehlo.reshape %0 : (tensor<1x8x8xf32>) -> tensor<8x8xf32>
    %2 = stablehlo.dot_general %arg0, %1, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    return %2 : tensor<4x8xf32>
  }
  func.func private @neuron.reduce.0(%arg0: tensor<4x8xf32>, %arg1: tensor<4x8xf32>) -> (tensor<4x8xf32>, tensor<f32>) {
    %0 = stablehlo.add %arg0, %arg1 : tensor<4x8xf32>
    %1 = stablehlo.tanh %0 : tensor<4x8xf32>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %2 = stablehlo.reduce(%1 init: %cst) applies stablehlo.add across dimensions = [0, 1] : (tensor<4x8xf32>, tensor<f32>) -> tensor<f32>
    return %1, %2 : tensor<4x8xf32>, tensor<f32>
  }
  func.func private @neuron.elementwise.0(%arg0: tensor<4x8xf32>, %arg1: tensor<3x8x8xf32>, %arg2: tensor<i32>, %arg3: tensor<3x1x2xf32>, %arg4: tensor<i32>) -> tensor<3x1x2xf32> {
    %0 = stablehlo.slice %arg0 [0:1, 0:2] : (tensor<4x8xf32>) -> tensor<1x2xf32>
    %c = stablehlo.constant dense<0> : tensor<i32>
    %1 = stablehlo.dynamic_slice %arg1, %arg2, %c, %c, sizes = [1, 8, 8] : (tensor<3x8x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x8xf32>
    %2 = stablehlo.reshape %1 : (tensor<1x8x8xf32>) -> tensor<8x8xf32>
    %3 = stablehlo.slice %2 [0:1, 0:1] : (tensor<8x8xf32>) -> tensor<1x1xf32>
    %4 = stablehlo.reshape %3 : (tensor<1x1xf32>) -> tensor<f32>
    %5 = stablehlo.broadcast_in_dim %4, dims = [] : (tensor<f32>) -> tensor<1x2xf32>
    %6 = stablehlo.add %0, %5 : tensor<1x2xf32>
    %7 = stablehlo.broadcast_in_dim %6, dims = [1, 2] : (tensor<1x2xf32>) -> tensor<1x1x2xf32>
    %8 = stablehlo.dynamic_update_slice %arg3, %7, %arg4, %c, %c : (tensor<3x1x2xf32>, tensor<1x1x2xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x1x2xf32>
    return %8 : tensor<3x1x2xf32>
  }
  func.func private @neuron.data_movement.0(%arg0: tensor<3xf32>, %arg1: tensor<f32>, %arg2: tensor<i32>) -> tensor<3xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [] : (tensor<f32>) -> tensor<1xf32>
    %1 = stablehlo.dynamic_update_slice %arg0, %0, %arg2 : (tensor<3xf32>, tensor<1xf32>, tensor<i32>) -> tensor<3xf32>
    return %1 : tensor<3xf32>
  }
  func.func private @neuron.elementwise.1(%arg0: tensor<4x8xf32>) -> tensor<4x8xf32> {
    %cst = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %0 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %1 = stablehlo.subtract %arg0, %0 : tensor<4x8xf32>
    return %1 : tensor<4x8xf32>
  }
  func.func private @neuron.elementwise.2(%arg0: tensor<4x8xf32>, %arg1: tensor<3x8x8xf32>) -> tensor<4x8xf32> {
    %0 = stablehlo.slice %arg1 [0:1, 0:8, 0:1] : (tensor<3x8x8xf32>) -> tensor<1x8x1xf32>
    %1 = stablehlo.reshape %0 : (tensor<1x8x1xf32>) -> tensor<8xf32>
    %2 = stablehlo.broadcast_in_dim %1, dims = [1] : (tensor<8xf32>) -> tensor<1x8xf32>
    %3 = stablehlo.broadcast_in_dim %2, dims = [0, 1] : (tensor<1x8xf32>) -> tensor<4x8xf32>
    %4 = stablehlo.multiply %arg0, %3 : tensor<4x8xf32>
    return %4 : tensor<4x8xf32>
  }
  func.func private @neuron.elementwise.3(%arg0: tensor<4x8xf32>) -> tensor<4x8xf32> {
    %cst = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %0 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %1 = stablehlo.add %arg0, %0 : tensor<4x8xf32>
    return %1 : tensor<4x8xf32>
  }
  func.func private @neuron.elementwise.4(%arg0: tensor<4x8xf32>) -> tensor<4x8xf32> {
    %cst = stablehlo.constant dense<2.000000e+00> : tensor<f32>
    %0 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %1 = stablehlo.multiply %0, %arg0 : tensor<4x8xf32>
    return %1 : tensor<4x8xf32>
  }
  func.func private @neuron.data_movement.1() -> tensor<3xf32> {
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %0 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<3xf32>
    return %0 : tensor<3xf32>
  }
  func.func private @neuron.control.0(%arg0: tensor<4x8xf32>) -> tensor<4x8xf32> {
    %c = stablehlo.constant dense<0> : tensor<i32>
    %c_0 = stablehlo.constant dense<3> : tensor<i32>
    %c_1 = stablehlo.constant dense<1> : tensor<i32>
    %cst = stablehlo.constant dense<5.000000e-01> : tensor<f32>
    %0:3 = stablehlo.while(%iterArg = %c, %iterArg_2 = %c, %iterArg_3 = %arg0) : tensor<i32>, tensor<i32>, tensor<4x8xf32>
    cond {
      %1 = stablehlo.compare LT, %iterArg, %c_0, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %1 : tensor<i1>
    } do {
      %1 = stablehlo.add %iterArg_2, %c_1 : tensor<i32>
      %2 = stablehlo.sine %iterArg_3 : tensor<4x8xf32>
      %3 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
      %4 = stablehlo.add %2, %3 : tensor<4x8xf32>
      %5 = stablehlo.add %iterArg, %c_1 : tensor<i32>
      stablehlo.return %5, %1, %4 : tensor<i32>, tensor<i32>, tensor<4x8xf32>
    }
    return %0#2 : tensor<4x8xf32>
  }
}
